// Vectors of the target, bf16 and float in and out of memory, and moments that survive a large mean.
//
// Stores come in two kinds: through the cache, and around it. A tensor that does not fit into the last-level cache is
// stored around it: an ordinary store first reads the line it is going to overwrite, half as much traffic again.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <omp.h>

namespace archbench {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define ARCHBENCH_AVX512
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
constexpr int UNROLL = 4;
constexpr int64_t LINE = 64;

typedef float Vector __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));
typedef uint16_t bf16;

inline Vector all(float x) { return Vector{} + x; }

inline float sum_of(Vector x) {
#if defined(ARCHBENCH_AVX512)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float s = 0;
    for (int i = 0; i < WIDTH; ++i) s += x[i];
    return s;
#endif
}

inline Vector widen(Halves x) {
#if defined(ARCHBENCH_AVX512)  // GCC 12 converts in two halves
    return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16);
#else
    return (Vector)(__builtin_convertvector(x, Bits) << 16);
#endif
}

inline Halves narrow(Vector x) {  // round to nearest even
#if defined(ARCHBENCH_AVX512) && defined(__AVX512BF16__)
    return (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
    Bits bits = (Bits)x;
    return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
#endif
}

inline Vector load(const float* p) {
    Vector x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
inline Vector load(const bf16* p) {
    Halves x;
    std::memcpy(&x, p, sizeof x);
    return widen(x);
}

// The first n elements, fewer than WIDTH, and ``rest`` in the other lanes.
inline Vector load_part(const float* p, int n, Vector rest) {
#if defined(ARCHBENCH_AVX512)
    return (Vector)_mm512_mask_loadu_ps((__m512)rest, __mmask16((1u << n) - 1), p);
#else
    for (int i = 0; i < n; ++i) rest[i] = p[i];
    return rest;
#endif
}
inline Vector load_part(const bf16* p, int n, Vector rest) {
#if defined(ARCHBENCH_AVX512)
    const __mmask16 mask = __mmask16((1u << n) - 1);
    const Vector x = widen((Halves)_mm256_maskz_loadu_epi16(mask, p));
    return (Vector)_mm512_mask_mov_ps((__m512)rest, mask, (__m512)x);
#else
    Halves x = {};
    std::memcpy(&x, p, 2 * n);
    const Vector wide = widen(x);
    for (int i = 0; i < n; ++i) rest[i] = wide[i];
    return rest;
#endif
}

inline void store(float* p, Vector x) { std::memcpy(p, &x, sizeof x); }
inline void store(bf16* p, Vector x) {
    const Halves h = narrow(x);
    std::memcpy(p, &h, sizeof h);
}
inline void store_part(float* p, int n, Vector x) {
#if defined(ARCHBENCH_AVX512)
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)x);
#else
    std::memcpy(p, &x, 4 * n);
#endif
}
inline void store_part(bf16* p, int n, Vector x) {
    const Halves h = narrow(x);
#if defined(ARCHBENCH_AVX512)
    _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), (__m256i)h);
#else
    std::memcpy(p, &h, 2 * n);
#endif
}

// Around the cache; p is aligned to the size of what is stored.
inline void stream(float* p, Vector x) {
#if defined(ARCHBENCH_AVX512)
    _mm512_stream_ps(p, (__m512)x);
#elif defined(__AVX2__)
    _mm256_stream_ps(p, (__m256)x);
#elif defined(__x86_64__)
    _mm_stream_ps(p, (__m128)x);
#else
    store(p, x);
#endif
}
inline void stream(bf16* p, Vector x) {
    const Halves h = narrow(x);
#if defined(ARCHBENCH_AVX512)
    _mm256_stream_si256((__m256i*)p, (__m256i)h);
#elif defined(__AVX2__)
    _mm_stream_si128((__m128i*)p, (__m128i)h);
#elif defined(__x86_64__)
    long long bits;
    std::memcpy(&bits, &h, 8);
    _mm_stream_si64((long long*)p, bits);
#else
    std::memcpy(p, &h, sizeof h);
#endif
}

// What was streamed is seen by others after this.
inline void streamed() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

// Asks for the line of an element that will be read soon.
inline void ask(const void* p) { __builtin_prefetch(p, 0, 2); }

// Writes value(i, n) for elements i to i + n of an output of ``count``: whole vectors (n = WIDTH) and parts of one.
template <bool STREAM, class Element, class Value>
inline void write(Element* out, int64_t count, Value value) {
    int64_t i = 0;
    if constexpr (STREAM) {
        const int64_t before = std::min<int64_t>(count, (LINE - int64_t(uintptr_t(out) % LINE)) % LINE / sizeof(Element));
        for (; i + WIDTH <= before; i += WIDTH) store(out + i, value(i, WIDTH));
        if (i < before) store_part(out + i, int(before - i), value(i, int(before - i))), i = before;
        for (; i + UNROLL * WIDTH <= count; i += UNROLL * WIDTH)
            for (int u = 0; u < UNROLL; ++u) stream(out + i + u * WIDTH, value(i + u * WIDTH, WIDTH));
    } else {
        for (; i + UNROLL * WIDTH <= count; i += UNROLL * WIDTH)
            for (int u = 0; u < UNROLL; ++u) store(out + i + u * WIDTH, value(i + u * WIDTH, WIDTH));
    }
    for (; i + WIDTH <= count; i += WIDTH) store(out + i, value(i, WIDTH));
    if (i < count) store_part(out + i, int(count - i), value(i, int(count - i)));
}

template <class Element>
inline Vector take(const Element* p, int n, Vector rest = Vector{}) {
    return n == WIDTH ? load(p) : load_part(p, n, rest);
}

// Two sums over a run, in lanes: call(i, n, u) adds elements i to i + n to accumulator u.
template <class Add>
inline void over(int64_t count, Add add) {
    int64_t i = 0;
    for (; i + UNROLL * WIDTH <= count; i += UNROLL * WIDTH)
        for (int u = 0; u < UNROLL; ++u) add(i + u * WIDTH, WIDTH, u);
    for (; i + WIDTH <= count; i += WIDTH) add(i, WIDTH, 0);
    if (i < count) add(i, int(count - i), 0);
}

struct Lanes {
    Vector part[UNROLL] = {};
    float total() const { return sum_of((part[0] + part[1]) + (part[2] + part[3])); }
};

// Count, mean and sum of squared deviations of what was seen, merged as Chan et al. 1983 do.
struct Moments {
    double count = 0, mean = 0, squares = 0;

    void merge(double n, double mean_n, double squares_n) {
        const double all = count + n, gap = mean_n - mean;
        squares += squares_n + gap * gap * (count / all) * n;
        mean += gap * (n / all);
        count = all;
    }
    // n elements whose differences from a pivot sum up to ``first``, and their squares to ``second``.
    void merge_shifted(double n, double pivot, double first, double second) {
        merge(n, pivot + first / n, std::max(0.0, second - first * first / n));
    }
    double variance() const { return squares / count; }
};

// Moments of a set of runs, in one pass. Differences are taken from the mean of what was seen before: a block that lies
// apart from it by d adds about as much to the true sum of squares as the d^2 of each element can round away, as long
// as it is not much longer than everything before it.
template <class Element>
class Collector {
    static constexpr int64_t BLOCK = 4096, FIRST = 1024;
    Lanes first, second;
    float pivot = 0;
    int64_t pending = 0;
    Moments seen;

    void flush() {
        if (!pending) return;
        seen.merge_shifted(double(pending), pivot, first.total(), second.total());
        first = second = Lanes{}, pending = 0, pivot = float(seen.mean);
    }

  public:
    void add(const Element* x, int64_t count) {
        if (seen.count == 0 && !pending) {
            const Vector x0 = all(take(x, 1)[0]);
            const int64_t n = std::min(count, FIRST);
            Lanes sum;
            over(n, [&](int64_t i, int k, int u) { sum.part[u] += take(x + i, k, x0) - x0; });
            pivot = x0[0] + sum.total() / float(n);
        }
        for (int64_t at = 0; at < count; at += BLOCK) {
            const int64_t n = std::min(BLOCK, count - at);
            const Vector p = all(pivot);
            Lanes a = first, b = second;  // members would be stored at every step
            over(n, [&](int64_t i, int k, int u) {
                const Vector d = take(x + at + i, k, p) - p;
                a.part[u] += d, b.part[u] += d * d;
            });
            first = a, second = b;
            pending += n;
            if (double(pending) >= std::min(double(BLOCK), 4 * seen.count)) flush();
        }
    }
    Moments done() {
        flush();
        return seen;
    }
};

// A number in double as the nearest float and what is left of it: x - mean is exact where it matters.
struct Split {
    float high;
    double low;
    explicit Split(double x) : high(float(x)), low(x - double(high)) {}
};

}  // namespace archbench
