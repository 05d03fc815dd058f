// Attention for CPUs, forward: blocks of queries against packed keys and values, softmax in one pass.
//
// A task is a block of query rows of one head. Scores of the block against BLOCK_KEYS keys are formed in register tiles,
// turned into weights with a running maximum and sum, and multiplied with the values in the same tiles; the output is
// rescaled when the maximum grows. Keys and values are packed once per KV head into the order the tiles read them in,
// which is linear in the length and shared by the query heads of the group.
//
// Threads are OpenMP's, so in a process that loaded torch they are torch's own pool and number.
//
// Letters: B batch, H query heads, G KV heads, R = H / G, T length, D head size.
// Source: Milakov & Gimelshein 2018, arXiv:1805.02867; Dao 2023, arXiv:2307.08691.

#include "tiles.hpp"

namespace {

using namespace archbench;

constexpr int BLOCK_ROWS = 48;
constexpr int BLOCK_KEYS = 256;
constexpr float MASKED = -1e30f;

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
                target[(d / Way::STEP * TILE_COLS + t - first) * Way::STEP + d % Way::STEP] = element<Packed>(source[int64_t(t) * at.D + d]);
        source = v + int64_t(bg) * at.T * at.D;
        for (int column = 0; column < padded_D; column += TILE_COLS) {
            target = values + int64_t(bg) * padded_T * padded_D + int64_t(column) * padded_T + int64_t(first) * TILE_COLS;
            const int width = std::min(TILE_COLS, at.D - column);
            std::memset(target, 0, sizeof(Packed) * TILE_COLS * TILE_COLS);
            for (int t = first; t < last; ++t)
                for (int d = 0; d < width; ++d)
                    target[((t - first) / Way::STEP * TILE_COLS + d) * Way::STEP + (t - first) % Way::STEP] =
                        element<Packed>(source[int64_t(t) * at.D + column + d]);
        }
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
            for (int d = 0; d < at.D; ++d) s.queries[r * terms + d] = element<Packed>(source[r * at.D + d]);
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
            for (int d = 0; d < at.D; ++d) write(target + d, s.sums[r * padded_D + d] * inverse);
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
