// What the multipliers reach that never wait for memory: no product of matrices is faster, however it is written.
#include <cstdint>
#include <omp.h>

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
constexpr int CHAINS = 12;  // in registers; no processor has more multiplications under way than eight or ten
typedef float Vector __attribute__((vector_size(4 * WIDTH)));

float multiply_add(int64_t rounds, float factor, float term) {
    const Vector times = Vector{} + factor, plus = Vector{} + term;
    Vector chains[CHAINS];
    for (int j = 0; j < CHAINS; ++j) chains[j] = Vector{} + float(j);
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; ++j) chains[j] = chains[j] * times + plus;
    }
    float all = 0;
    for (const Vector& chain : chains)
        for (int lane = 0; lane < WIDTH; ++lane) all += chain[lane];
    return all;
}

}  // namespace

// Multiplications and additions of a round of a thread.
extern "C" int64_t archbench_multiply_add_operations() { return 2 * CHAINS * WIDTH; }

// Every thread goes ``rounds`` times from x to factor x + term, in float32; the sum of all x, which depends on each.
extern "C" float archbench_multiply_add(int64_t rounds, float factor, float term, int threads) {
    float all = 0;
#pragma omp parallel num_threads(threads) reduction(+ : all)
    all += multiply_add(rounds, factor, term);
    return all;
}
