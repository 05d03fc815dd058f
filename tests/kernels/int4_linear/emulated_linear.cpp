// The C++ layers in a process of their own, for another processor under an emulator: sizes, matrices and x come in, y goes out.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "linear.cpp"

namespace {

template <class T>
std::vector<T> take(size_t count) {
    std::vector<T> found(count);
    if (std::fread(found.data(), sizeof(T), count, stdin) != count) std::abort();
    return found;
}

}  // namespace

int main() {
    const auto sizes = take<int32_t>(6);
    const int layers = sizes[0], M = sizes[1], N = sizes[2], K = sizes[3], stride = sizes[5];
    void* all = archbench_int4_new(layers, M, N, K, sizes[4]);
    for (int layer = 0; layer < layers; ++layer) {
        const auto raw = take<uint8_t>(size_t(N) * stride);
        archbench_int4_pack(all, layer, raw.data(), stride);
    }
    const auto x = take<float>(size_t(M) * K);
    std::vector<float> y(size_t(layers) * M * N);
    archbench_int4_multiply(all, x.data(), y.data());
    std::fwrite(y.data(), sizeof(float), y.size(), stdout);
    archbench_int4_free(all);
}
