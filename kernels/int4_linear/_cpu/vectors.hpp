// Vectors of the target, and the few operations on them that a compiler does not find by itself.
//
// Four ways, chosen by the compiler's target; a lane is one row of a matrix:
//   AVX-512 VNNI   16 lanes; unsigned times signed bytes, four terms at a time (vpdpbusd)
//   AVX2           8 lanes; pairs of terms in 16 bits (vpmaddubsw), or AVX-VNNI's vpdpbusd
//   NEON           4 lanes; four signed terms at a time (sdot), or pairs in 16 bits (smull, sadalp)
//   others         4 lanes, in plain C++
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define LANES_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define LANES_AVX2 1
#elif defined(__ARM_NEON) && defined(__aarch64__)
#define LANES_NEON 1
#endif

#if defined(LANES_AVX512) || defined(LANES_AVX2)
#include <immintrin.h>
#elif defined(LANES_NEON)
#include <arm_neon.h>
#endif

namespace lanes {

// GROUP: tokens whose sums stay in registers beside the eight operands of a block. QUERIES: rows of attention's tiles.
#if defined(LANES_AVX512)
constexpr int WIDTH = 16, GROUP = 12, QUERIES = 8;
#elif defined(LANES_AVX2)
constexpr int WIDTH = 8, GROUP = 4, QUERIES = 4;
#else
constexpr int WIDTH = 4, GROUP = 8, QUERIES = 8;
#endif
constexpr int BLOCK = 32;     // columns that share a scale, as in GGUF's q4_0 and q8_0
constexpr int OPERANDS = 8;   // vectors of bytes of a block: BLOCK columns of WIDTH rows, four columns each
constexpr float LOG2_E = 1.4426950408889634f;

typedef float Vector __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Integers __attribute__((vector_size(4 * WIDTH)));
typedef int8_t Bytes __attribute__((vector_size(4 * WIDTH)));
typedef int8_t Narrow __attribute__((vector_size(WIDTH)));
typedef float LooseVector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int8_t LooseBytes __attribute__((vector_size(4 * WIDTH), aligned(1), may_alias));
typedef int8_t LooseNarrow __attribute__((vector_size(WIDTH), aligned(1), may_alias));

inline Vector load(const float* p) { return *reinterpret_cast<const LooseVector*>(p); }
inline void store(float* p, Vector x) { *reinterpret_cast<LooseVector*>(p) = x; }
inline Bytes load_bytes(const void* p) { return *static_cast<const LooseBytes*>(p); }
inline Vector all(float x) { return x - Vector{}; }  // x + 0 would be an addition: it changes -0
inline Vector floats(Integers x) { return __builtin_convertvector(x, Vector); }
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }
inline Vector smaller(Vector a, Vector b) { return a < b ? a : b; }
inline int round_up(int x, int to) { return (x + to - 1) / to * to; }

#if defined(LANES_AVX512)  // through memory, as below, takes twice as long
inline float sum_of(Vector x) { return _mm512_reduce_add_ps(__m512(x)); }
inline float max_of(Vector x) { return _mm512_reduce_max_ps(__m512(x)); }
#else
inline float sum_of(Vector x) {
    float lane[WIDTH];
    std::memcpy(lane, &x, sizeof lane);
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
}
inline float max_of(Vector x) {
    float lane[WIDTH];
    std::memcpy(lane, &x, sizeof lane);
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] = std::max(lane[i], lane[i + half]);
    return lane[0];
}
#endif

// 2^x to 2e-7 for |x| <= 126, clamped beyond: the nearest integer goes into the exponent, a minimax polynomial does the rest.
inline Vector exp2(Vector x) {
    const Vector magic = all(12582912.0f);  // 1.5 * 2^23: its low bits are the rounded integer
    x = smaller(larger(x, all(-126.0f)), all(126.0f));
    const Vector shifted = x + magic, f = x - (shifted - magic);
    Vector p = all(1.3264727e-3f);
    p = p * f + all(9.6715130e-3f);
    p = p * f + all(5.5507340e-2f);
    p = p * f + all(2.4022242e-1f);
    p = p * f + all(6.9314700e-1f);
    p = p * f + all(1.0f);
    return reinterpret_cast<Vector>(reinterpret_cast<Integers>(p) + (reinterpret_cast<Integers>(shifted) << 23));
}

// Half precision in and out; to nearest, ties to even.
inline float widen(uint16_t half) {
    const uint32_t magnitude = uint32_t(half & 0x7fff) << 13, sign = uint32_t(half & 0x8000) << 16;
    float value;
    std::memcpy(&value, &magnitude, 4);
    value *= 0x1p112f;  // the difference of the exponents' offsets; exact, subnormal halves included
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits |= sign;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline uint16_t narrow(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    float magnitude = std::min(std::fabs(x), 65504.0f);
    if (magnitude < 0x1p-14f) return uint16_t(sign | uint16_t(std::nearbyint(magnitude * 0x1p24f)));
    std::memcpy(&bits, &magnitude, 4);
    bits += 0xfff + (bits >> 13 & 1);
    return uint16_t(sign | uint16_t((bits >> 13) - (112u << 10)));
}

// WIDTH elements as floats, whatever they are stored as.
inline Vector widened(const float* p) { return load(p); }
inline Vector widened(const int8_t* p) {
#if defined(LANES_AVX512)
    return Vector(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
#elif defined(LANES_AVX2)
    return Vector(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))));
#elif defined(LANES_NEON)
    uint32_t four;
    std::memcpy(&four, p, 4);
    return Vector(vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four))))));
#else
    return Vector{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
#endif
}
inline Vector widened(const uint16_t* p) {
#if defined(LANES_AVX512)
    return Vector(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(LANES_AVX2)
    return Vector(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(LANES_NEON)
    return Vector(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))));
#else
    return Vector{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
#endif
}

// The two halves of 4 * WIDTH bytes that hold two numbers of four bits each.
inline Bytes low_nibbles(Bytes x) { return x & 15; }
inline Bytes high_nibbles(Bytes x) {
#if defined(LANES_AVX512)
    return Bytes(_mm512_and_si512(_mm512_srli_epi16(__m512i(x), 4), _mm512_set1_epi8(15)));
#elif defined(LANES_AVX2)
    return Bytes(_mm256_and_si256(_mm256_srli_epi16(__m256i(x), 4), _mm256_set1_epi8(15)));
#else
    typedef uint8_t Unsigned __attribute__((vector_size(4 * WIDTH)));
    return Bytes(Unsigned(x) >> 4);
#endif
}

// A block's products: start + sum over 32 columns of w[row] * a, exactly. Operand g holds columns 4g to 4g + 3.
// ``Small``: w is 0..15. Else it is signed, and shifted to unsigned by OFFSET where the instruction wants that.
#if defined(LANES_AVX512) || defined(__AVXVNNI__)
constexpr int OFFSET = 128;
#else
constexpr int OFFSET = 0;
#endif

inline int32_t four(const int8_t* a) {
    int32_t x;
    std::memcpy(&x, a, 4);
    return x;
}

template <bool SMALL>
inline Integers products(const Bytes* w, const int8_t* a, int32_t start) {
#if defined(LANES_AVX512)
    __m512i sum = _mm512_set1_epi32(start);
#pragma GCC unroll 8
    for (int g = 0; g < OPERANDS; ++g) sum = _mm512_dpbusd_epi32(sum, __m512i(w[g]), _mm512_set1_epi32(four(a + 4 * g)));
    return Integers(sum);
#elif defined(LANES_AVX2) && defined(__AVXVNNI__)
    __m256i sum = _mm256_set1_epi32(start);
#pragma GCC unroll 8
    for (int g = 0; g < OPERANDS; ++g)
        sum = _mm256_dpbusd_avx_epi32(sum, __m256i(w[g]), _mm256_set1_epi32(four(a + 4 * g)));
    return Integers(sum);
#elif defined(LANES_AVX2)
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sum = _mm256_set1_epi32(start), pairs = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int g = 0; g < OPERANDS; ++g) {
        const __m256i x = __m256i(w[g]), y = _mm256_set1_epi32(four(a + 4 * g));
        if (SMALL)  // 8 * 2 * 15 * 127 fits into 16 bits
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(x, y));
        else {
            const __m256i two = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(y, x));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(two, ones));
        }
    }
    return Integers(SMALL ? _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones)) : sum);
#elif defined(LANES_NEON) && defined(__ARM_FEATURE_DOTPROD)
    const int8x16_t a0 = vld1q_s8(a), a1 = vld1q_s8(a + 16);
    int32x4_t sum = vdupq_n_s32(start);
    sum = vdotq_laneq_s32(sum, int8x16_t(w[0]), a0, 0);
    sum = vdotq_laneq_s32(sum, int8x16_t(w[1]), a0, 1);
    sum = vdotq_laneq_s32(sum, int8x16_t(w[2]), a0, 2);
    sum = vdotq_laneq_s32(sum, int8x16_t(w[3]), a0, 3);
    sum = vdotq_laneq_s32(sum, int8x16_t(w[4]), a1, 0);
    sum = vdotq_laneq_s32(sum, int8x16_t(w[5]), a1, 1);
    sum = vdotq_laneq_s32(sum, int8x16_t(w[6]), a1, 2);
    sum = vdotq_laneq_s32(sum, int8x16_t(w[7]), a1, 3);
    return Integers(sum);
#elif defined(LANES_NEON)
    int32x4_t sum = vdupq_n_s32(start);
#pragma GCC unroll 8
    for (int g = 0; g < OPERANDS; ++g) {
        const int8x16_t x = int8x16_t(w[g]), y = vreinterpretq_s8_s32(vdupq_n_s32(four(a + 4 * g)));
        sum = vpadalq_s16(sum, vpaddq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(y)), vmull_high_s8(x, y)));
    }
    return Integers(sum);
#else
    Integers sum = Integers{} + start;
    for (int g = 0; g < OPERANDS; ++g)
        for (int row = 0; row < WIDTH; ++row)
            for (int c = 0; c < 4; ++c) sum[row] += int(w[g][4 * row + c]) * a[4 * g + c];
    return sum;
#endif
}

}  // namespace lanes
