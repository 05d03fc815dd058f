// Attention for CPUs: blocks of queries against packed keys and values, softmax in one pass.
//
// A task is a block of query rows of one head. Scores of the block against BLOCK_KEYS keys are formed in register tiles of
// TILE_ROWS x TILE_COLS, turned into weights with a running maximum and sum, and multiplied with the values in the same
// tiles; the output is rescaled when the maximum grows. Keys and values are packed once per KV head into the order the
// tiles read them in, which is linear in the length and shared by the query heads of the group.
//
// Three ways through the arithmetic, chosen by the compiler's target:
//   AVX-512 BF16   bf16 products in pairs (vdpbf16ps), float accumulators, weights rounded to bf16
//   AVX-512        float products; bf16 inputs are widened when they are packed
//   AVX2, NEON     the same with narrower vectors
//
// Threads are OpenMP's, so in a process that loaded torch they are torch's own pool and number.
//
// Letters: B batch, H query heads, G KV heads, R = H / G, T length, D head size.
// Source: Milakov & Gimelshein 2018, arXiv:1805.02867; Dao 2023, arXiv:2307.08691.

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

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16, VECTORS = 4;  // 6 x 4 accumulators, 4 operands, 1 broadcast of 32 registers
#elif defined(__AVX2__)
constexpr int WIDTH = 8, VECTORS = 2;  // 6 x 2 of 16
#else
constexpr int WIDTH = 4, VECTORS = 4;  // NEON: 6 x 4 of 32
#endif
constexpr int TILE_ROWS = 6;
constexpr int TILE_COLS = WIDTH * VECTORS;
constexpr int BLOCK_ROWS = 48;
#ifndef BLOCK_KEYS
#define BLOCK_KEYS 256
#endif
constexpr float MASKED = -1e30f;
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

// 2^x for x <= 0 to 2e-7: round to the nearest integer, a polynomial for the rest, the integer into the exponent.
inline Vector exp2(Vector x) {
    const Vector magic = all(12582912.0f);  // 1.5 * 2^23: its low bits are the rounded integer
    x = larger(x, all(-126.0f));
    Vector shifted = x + magic;
    Vector f = x - (shifted - magic);
    Vector p = all(1.3333558e-3f);
    p = p * f + all(9.6181291e-3f);
    p = p * f + all(5.5504109e-2f);
    p = p * f + all(2.4022651e-1f);
    p = p * f + all(6.9314718e-1f);
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

struct Problem {
    int B, H, G, T, D;
    float scale;
    bool causal;
    int threads;
};

template <class Element, class Way>
struct Attention {
    using Packed = typename Way::Packed;
    using Weight = typename Way::Weight;
    const Problem& at;
    const Element *q, *k, *v;  // [B, H or G, T, D], contiguous
    Element* out;
    float* logsumexp;          // [B, H, T] or null
    int padded_T, padded_D, terms;  // terms: D rounded up to whole steps
    Packed *keys, *values;

    // keys [block of TILE_COLS keys][D / STEP][key][STEP], values [tile of D][T / STEP][column][STEP]; zeros beyond.
    void pack(int bg, int block) const {
        const int first = block * TILE_COLS, last = std::min(first + TILE_COLS, at.T);
        const Element* source = k + int64_t(bg) * at.T * at.D;
        Packed* target = keys + (int64_t(bg) * padded_T + first) * terms;
        std::memset(target, 0, sizeof(Packed) * TILE_COLS * terms);
        for (int t = first; t < last; ++t)
            for (int d = 0; d < at.D; ++d)
                target[(d / Way::STEP * TILE_COLS + t - first) * Way::STEP + d % Way::STEP] = element(source[int64_t(t) * at.D + d]);
        source = v + int64_t(bg) * at.T * at.D;
        for (int column = 0; column < padded_D; column += TILE_COLS) {
            target = values + int64_t(bg) * padded_T * padded_D + int64_t(column) * padded_T + int64_t(first) * TILE_COLS;
            const int width = std::min(TILE_COLS, at.D - column);
            std::memset(target, 0, sizeof(Packed) * TILE_COLS * TILE_COLS);
            for (int t = first; t < last; ++t)
                for (int d = 0; d < width; ++d)
                    target[((t - first) / Way::STEP * TILE_COLS + d) * Way::STEP + (t - first) % Way::STEP] =
                        element(source[int64_t(t) * at.D + column + d]);
        }
    }

    static Packed element(Element x) {
        if constexpr (std::is_same_v<Packed, Element>) return x;
        else return widen(x);
    }

    struct Scratch {
        alignas(64) float scores[BLOCK_ROWS * BLOCK_KEYS];
        alignas(64) Weight weights[BLOCK_ROWS * BLOCK_KEYS];
        alignas(64) float maximum[BLOCK_ROWS], total[BLOCK_ROWS], shrink[BLOCK_ROWS];
        Packed* queries;  // [BLOCK_ROWS][terms]
        float* sums;      // [BLOCK_ROWS][padded_D]
    };

    void block_of_rows(int bh, int first, Scratch& s) const {
        const int rows = std::min(BLOCK_ROWS, at.T - first), b = bh / at.H, g = bh % at.H / (at.H / at.G);
        const int64_t bg = int64_t(b) * at.G + g;
        const Element* source = q + (int64_t(bh) * at.T + first) * at.D;
        for (int r = 0; r < rows; ++r) {
            for (int d = 0; d < at.D; ++d) s.queries[r * terms + d] = element(source[r * at.D + d]);
            for (int d = at.D; d < terms; ++d) s.queries[r * terms + d] = Packed(0);
        }
        for (int r = 0; r < rows; ++r) s.maximum[r] = MASKED, s.total[r] = 0;
        const int seen = at.causal ? first + rows : at.T;
        for (int start = 0; start < seen; start += BLOCK_KEYS) {
            const int columns = round_up(std::min(BLOCK_KEYS, seen - start), TILE_COLS);
            for (int c = 0; c < columns; c += TILE_COLS)
                tiles<Way, false>(rows, s.queries, terms, keys + (bg * padded_T + start + c) * terms, terms,
                                  s.scores + c, BLOCK_KEYS, s.shrink);
            mask(s, rows, first, start, columns);
            soften(s, rows, columns);
            for (int d = 0; d < padded_D; d += TILE_COLS) {
                const Packed* column = values + bg * padded_T * padded_D + int64_t(d) * padded_T + int64_t(start) * TILE_COLS;
                if (start == 0)
                    tiles<Way, false>(rows, s.weights, BLOCK_KEYS, column, columns, s.sums + d, padded_D, s.shrink);
                else
                    tiles<Way, true>(rows, s.weights, BLOCK_KEYS, column, columns, s.sums + d, padded_D, s.shrink);
            }
        }
        finish(s, bh, first, rows);
    }

    // Beyond the length, and above the diagonal, nothing is seen.
    void mask(Scratch& s, int rows, int first, int start, int columns) const {
        if (start + columns <= at.T && !(at.causal && start + columns > first + 1)) return;
        for (int r = 0; r < rows; ++r) {
            const int end = at.causal ? std::min(at.T, first + r + 1) : at.T;
            for (int c = std::max(0, end - start); c < columns; ++c) s.scores[r * BLOCK_KEYS + c] = MASKED;
        }
    }

    // Scores to weights: the running maximum, what the old sums shrink by, the running total.
    void soften(Scratch& s, int rows, int columns) const {
        const float scale = at.scale * LOG2_E;
        for (int r = 0; r < rows; ++r) {
            float* row = s.scores + r * BLOCK_KEYS;
            Vector m0 = load(row), m1 = load(row + WIDTH);
            for (int c = 2 * WIDTH; c < columns; c += 2 * WIDTH) {
                m0 = larger(m0, load(row + c));
                m1 = larger(m1, load(row + c + WIDTH));
            }
            const float before = s.maximum[r], now = std::max(before, max_of(larger(m0, m1)));
            const Vector shift = all(-now * scale), factor = all(scale);
            Vector t0 = Vector{}, t1 = Vector{};
            for (int c = 0; c < columns; c += 2 * WIDTH) {
                Vector p0 = exp2(load(row + c) * factor + shift), p1 = exp2(load(row + c + WIDTH) * factor + shift);
                t0 += p0, t1 += p1;
                Way::weights(s.weights + r * BLOCK_KEYS + c, p0, p1);
            }
            s.shrink[r] = std::exp2((before - now) * scale);
            s.total[r] = s.total[r] * s.shrink[r] + sum_of(t0 + t1);
            s.maximum[r] = now;
        }
    }

    void finish(const Scratch& s, int bh, int first, int rows) const {
        for (int r = 0; r < rows; ++r) {
            const float inverse = 1 / s.total[r];
            Element* target = out + (int64_t(bh) * at.T + first + r) * at.D;
            for (int d = 0; d < at.D; ++d) {
                const float x = s.sums[r * padded_D + d] * inverse;
                if constexpr (std::is_same_v<Element, float>) target[d] = x;
                else target[d] = narrow(x);
            }
            if (logsumexp) logsumexp[int64_t(bh) * at.T + first + r] = s.maximum[r] * at.scale + std::log(s.total[r]);
        }
    }

    int run() {
        padded_T = round_up(at.T, std::max(TILE_COLS, 2)), padded_D = round_up(at.D, TILE_COLS);
        terms = round_up(at.D, Way::STEP);
        const int groups = at.B * at.G, blocks = padded_T / TILE_COLS;
        const int heads = at.B * at.H, parts = (at.T + BLOCK_ROWS - 1) / BLOCK_ROWS;
        const size_t key_bytes = round_up64(sizeof(Packed) * groups * size_t(padded_T) * terms);
        const size_t value_bytes = round_up64(sizeof(Packed) * groups * size_t(padded_T) * padded_D);
        const size_t own = round_up64(sizeof(Scratch) + BLOCK_ROWS * (sizeof(Packed) * terms + sizeof(float) * padded_D) + 128);
        char* memory = static_cast<char*>(std::aligned_alloc(64, key_bytes + value_bytes + own * at.threads));
        if (!memory) return 1;
        keys = reinterpret_cast<Packed*>(memory);
        values = reinterpret_cast<Packed*>(memory + key_bytes);
#pragma omp parallel num_threads(at.threads)
        {
            char* mine = memory + key_bytes + value_bytes + own * omp_get_thread_num();
            Scratch& s = *new (mine) Scratch;
            s.sums = reinterpret_cast<float*>(mine + round_up64(sizeof(Scratch)));
            s.queries = reinterpret_cast<Packed*>(s.sums + BLOCK_ROWS * padded_D);
#pragma omp for schedule(static)
            for (int i = 0; i < groups * blocks; ++i) pack(i / blocks, i % blocks);
#pragma omp for schedule(dynamic, 1)
            for (int i = 0; i < heads * parts; ++i)  // the longest rows of a causal mask first
                block_of_rows(i % heads, (parts - 1 - i / heads) * BLOCK_ROWS, s);
        }
        std::free(memory);
        return 0;
    }

    static size_t round_up64(size_t x) { return (x + 63) / 64 * 64; }
};

template <class Element, class Way>
int forward(const Problem& at, const void* q, const void* k, const void* v, void* out, float* logsumexp) {
    Attention<Element, Way> attention{at, static_cast<const Element*>(q), static_cast<const Element*>(k),
                                      static_cast<const Element*>(v), static_cast<Element*>(out), logsumexp,
                                      0, 0, 0, nullptr, nullptr};
    return attention.run();
}

}  // namespace

// q [B, H, T, D], k and v [B, G, T, D], out [B, H, T, D]: contiguous float (bf16 == 0) or bf16 (bf16 == 1).
// logsumexp [B, H, T] in natural units, or null. Returns 0, or 1 where memory ran out.
extern "C" int archbench_attention(int bf16, int B, int H, int G, int T, int D, float scale, int causal, int threads,
                                   const void* q, const void* k, const void* v, void* out, float* logsumexp) {
    const Problem at{B, H, G, T, D, scale, causal != 0, threads};
    if (!bf16) return forward<float, Exact>(at, q, k, v, out, logsumexp);
#if defined(__AVX512BF16__)
    return forward<uint16_t, Pairs>(at, q, k, v, out, logsumexp);
#else
    return forward<uint16_t, Exact>(at, q, k, v, out, logsumexp);
#endif
}
