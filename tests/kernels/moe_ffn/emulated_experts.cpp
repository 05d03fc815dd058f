// The C++ experts in a process of their own, for another processor under an emulator: a call's arguments come in, answers go out.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "experts.cpp"

namespace {

template <class T>
std::vector<T> read(size_t count) {
    std::vector<T> found(count);
    if (std::fread(found.data(), sizeof(T), count, stdin) != count) std::abort();
    return found;
}

}  // namespace

int main() {
    const auto sizes = read<int64_t>(7);
    const int64_t gated = sizes[0], E = sizes[1], D = sizes[2], H = sizes[3], N = sizes[4], A = sizes[5], threads = sizes[6];
    const auto token = read<int64_t>(A), counts = read<int64_t>(E);
    const auto x = read<float>(N * D), w_in = read<float>(E * (gated ? 2 : 1) * H * D), w_out = read<float>(E * H * D);
    std::vector<float> scratch(threads * archbench_moe_scratch(D)), said(A * D);
    archbench_moe_forward(int(gated), E, D, H, x.data(), token.data(), counts.data(), w_in.data(), w_out.data(),
                          scratch.data(), int(threads), said.data());
    if (!said.empty()) std::fwrite(said.data(), sizeof(float), said.size(), stdout);
}
