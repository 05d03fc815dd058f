// Register tiles: small matrix products over packed operands, and the arithmetic around them, for the vectors of the target.
//
// Three ways through the products, chosen by the compiler's target:
//   AVX-512 BF16   bf16 in pairs (vdpbf16ps), float accumulators
//   AVX-512        float; bf16 inputs are widened when they are packed
//   AVX2, NEON     the same with narrower vectors
//
// A packed operand of TILE_COLS columns holds STEP consecutive terms of a sum together: [terms / STEP][column][STEP].
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>

#if defined(__AVX512F__) || defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#include <omp.h>

namespace archbench {

#if defined(__AVX512F__)
constexpr int WIDTH = 16, VECTORS = 4;  // 6 x 4 accumulators, 4 operands, 1 broadcast of 32 registers
#elif defined(__AVX2__)
constexpr int WIDTH = 8, VECTORS = 2;  // 6 x 2 of 16
#else
constexpr int WIDTH = 4, VECTORS = 4;  // NEON: 6 x 4 of 32
#endif
constexpr int TILE_ROWS = 6;
constexpr int TILE_COLS = WIDTH * VECTORS;
constexpr float LOG2_E = 1.4426950408889634f;

typedef float Vector __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Integers __attribute__((vector_size(4 * WIDTH)));
typedef float Unaligned __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

inline Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(float* p, Vector x) { *reinterpret_cast<Unaligned*>(p) = x; }
inline Vector all(float x) { return Vector{} + x; }
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

inline int round_up(int x, int to) { return (x + to - 1) / to * to; }
inline float widen(uint16_t x) {
    uint32_t bits = uint32_t(x) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
inline float widen(float x) { return x; }
inline uint16_t narrow(float x) {  // round to nearest even; the inputs are finite
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// 2^x for x <= 0 to 2e-7: round to the nearest integer, a minimax polynomial for the rest, the integer into the exponent.
inline Vector exp2(Vector x) {
    const Vector magic = all(12582912.0f);  // 1.5 * 2^23: its low bits are the rounded integer
    x = larger(x, all(-126.0f));
    Vector shifted = x + magic;
    Vector f = x - (shifted - magic);
    Vector p = all(1.3264727e-3f);
    p = p * f + all(9.6715130e-3f);
    p = p * f + all(5.5507340e-2f);
    p = p * f + all(2.4022242e-1f);
    p = p * f + all(6.9314700e-1f);
    p = p * f + all(1.0f);
    return reinterpret_cast<Vector>(reinterpret_cast<Integers>(p) + (reinterpret_cast<Integers>(shifted) << 23));
}

inline float sum_of(Vector x) {
    float s = 0;
    for (int i = 0; i < WIDTH; ++i) s += x[i];
    return s;
}
inline float max_of(Vector x) {
    float m = x[0];
    for (int i = 1; i < WIDTH; ++i) m = std::max(m, x[i]);
    return m;
}

inline void write(float* target, float x) { *target = x; }
inline void write(uint16_t* target, float x) { *target = narrow(x); }

// An entry of an input as packed operands hold it: bf16 as it is where pairs are multiplied, float elsewhere.
template <class Packed, class Element>
inline Packed element(Element x) {
    if constexpr (std::is_same_v<Packed, Element>) return x;
    else return widen(x);
}

// What is asked, by the letters of the files that include this; ``threads`` are OpenMP's.
struct Problem {
    int B, H, G, T, D;
    float scale;
    bool causal;
    int threads;
};

inline int64_t round_up64(int64_t x) { return (x + 63) / 64 * 64; }

// How products are formed: Exact widens everything to float, Pairs multiplies bf16 pairs.
struct Exact {
    using Packed = float;
    using Weight = float;
    static constexpr int STEP = 1;  // terms of a sum per operand
    static inline Vector operand(const float* b, int v) { return load(b + v * WIDTH); }
    static inline Vector broadcast(const float* a) { return all(*a); }
    static inline Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
    static inline Packed pack(float x) { return x; }
    static inline void weights(float* row, Vector p0, Vector p1) {
        store(row, p0);
        store(row + WIDTH, p1);
    }
    static inline void put(float* row, Vector x) { store(row, x); }
    // Consecutive terms, a vector of columns each, into the place of a packed operand.
    static inline void interleave(float* place, const Vector* rows) { store(place, rows[0]); }
};

#if defined(__AVX512BF16__)
struct Pairs {
    using Packed = uint16_t;
    using Weight = uint16_t;
    static constexpr int STEP = 2;
    static inline __m512i operand(const uint16_t* b, int v) {
        return _mm512_loadu_si512(b + v * 2 * WIDTH);
    }
    static inline __m512i broadcast(const uint16_t* a) {
        int32_t pair;
        std::memcpy(&pair, a, 4);
        return _mm512_set1_epi32(pair);
    }
    static inline Vector multiply_add(__m512i a, __m512i b, Vector c) {
        return Vector(_mm512_dpbf16_ps(__m512(c), (__m512bh)a, (__m512bh)b));
    }
    static inline Packed pack(uint16_t x) { return x; }
    static inline void weights(uint16_t* row, Vector p0, Vector p1) {
        _mm512_storeu_si512(row, (__m512i)_mm512_cvtne2ps_pbh(__m512(p1), __m512(p0)));
    }
    static inline void put(uint16_t* row, Vector x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(row), (__m256i)_mm512_cvtneps_pbh(__m512(x)));
    }
    static inline void interleave(uint16_t* place, const Vector* rows) {
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                               21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(__m512(rows[1]), __m512(rows[0]));
        _mm512_storeu_si512(place, _mm512_permutexvar_epi16(order, both));
    }
};
#endif

// c[ROWS][TILE_COLS] = a[ROWS][terms] * b[terms][TILE_COLS], or scale[row] * c + a * b.
template <class Way, int ROWS, bool ADD>
inline void tile(const typename Way::Packed* a, int64_t stride_a, const typename Way::Packed* b, int terms, float* c,
                 int stride_c, const float* scale) {
    Vector sum[ROWS][VECTORS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v)
            sum[r][v] = ADD ? load(c + r * stride_c + v * WIDTH) * all(scale[r]) : Vector{};
    for (int k = 0; k < terms; k += Way::STEP) {
        decltype(Way::operand(b, 0)) operands[VECTORS];
        for (int v = 0; v < VECTORS; ++v) operands[v] = Way::operand(b, v);
        for (int r = 0; r < ROWS; ++r) {
            auto x = Way::broadcast(a + r * stride_a + k);
            for (int v = 0; v < VECTORS; ++v) sum[r][v] = Way::multiply_add(x, operands[v], sum[r][v]);
        }
        b += Way::STEP * TILE_COLS;
    }
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) store(c + r * stride_c + v * WIDTH, sum[r][v]);
}

// All rows of a product: full tiles, then what is left.
template <class Way, bool ADD>
inline void tiles(int rows, const typename Way::Packed* a, int64_t stride_a, const typename Way::Packed* b, int terms,
                  float* c, int stride_c, const float* scale) {
    int r = 0;
    for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
        tile<Way, TILE_ROWS, ADD>(a + r * stride_a, stride_a, b, terms, c + r * stride_c, stride_c, scale + r);
    a += r * stride_a, c += r * stride_c, scale += r;
    switch (rows - r) {
        case 5: tile<Way, 5, ADD>(a, stride_a, b, terms, c, stride_c, scale); break;
        case 4: tile<Way, 4, ADD>(a, stride_a, b, terms, c, stride_c, scale); break;
        case 3: tile<Way, 3, ADD>(a, stride_a, b, terms, c, stride_c, scale); break;
        case 2: tile<Way, 2, ADD>(a, stride_a, b, terms, c, stride_c, scale); break;
        case 1: tile<Way, 1, ADD>(a, stride_a, b, terms, c, stride_c, scale); break;
    }
}

}  // namespace archbench
