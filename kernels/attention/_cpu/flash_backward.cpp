// Attention for CPUs, backward: gradients from the queries, keys, values, output and its log-sum-exp.
//
// A task is one query head. For a block of queries and a block of keys it forms the transposed scores
// S^T = K Q^T, the weights P^T = exp(S^T - L), the gradient of the weights dP^T = V dO^T and of the scores
// dS^T = P^T (dP^T - delta), with delta = rowsum(dO O). Transposed, all of them are rows of keys: as they are they
// multiply the gradient of the output (dV = P^T dO) and the queries (dK = dS^T Q), and interleaved as they are stored
// they are the packed operand of dQ^T = K^T dS^T. So nothing is ever transposed but K, once per KV head.
// Gradients of keys and values are summed in float over the blocks of queries, then over the heads of a group.
//
// Letters: B batch, H query heads, G KV heads, R = H / G, T length, D head size.
// Source: Dao 2023, arXiv:2307.08691; docs/derivations/attention.md.

#include "tiles.hpp"

namespace {

using namespace archbench;

constexpr int BLOCK_KEYS = 48;                 // rows of the transposed scores
constexpr int BLOCK_QUERIES = 2 * TILE_COLS;   // their columns

template <class Element, class Way>
struct Backward {
    using Packed = typename Way::Packed;
    const Problem& at;
    const Element *q, *k, *v, *out, *dout;  // [B, H or G, T, D], contiguous
    const float* logsumexp;                 // [B, H, T]
    Element *dq, *dk, *dv;
    int terms, padded_D, padded_T;  // D in whole steps, D in whole tiles, T in whole steps
    Packed *keys, *values;          // rows [B G][T][terms]
    Packed* keys_by_D;              // rows [B G][D][padded_T]
    float *sum_dk, *sum_dv;         // [B H][T][padded_D]

    struct Scratch {
        alignas(64) float scores[BLOCK_KEYS * BLOCK_QUERIES], slopes[BLOCK_KEYS * BLOCK_QUERIES];
        alignas(64) Packed weights[BLOCK_KEYS * BLOCK_QUERIES], steep[BLOCK_KEYS * BLOCK_QUERIES];  // P^T and dS^T
        alignas(64) Packed mixed[BLOCK_KEYS * BLOCK_QUERIES];  // dS^T, packed: [tile of queries][keys / STEP][query][STEP]
        alignas(64) float lse[BLOCK_QUERIES], delta[BLOCK_QUERIES], ones[256];
        Packed *queries_by_D, *douts_by_D;  // packed, terms are D: [tile of queries][D / STEP][query][STEP]
        Packed *queries, *douts;            // packed, terms are queries: [tile of D][queries / STEP][column][STEP]
        float* sum_dq;                      // dQ^T [D][BLOCK_QUERIES]
    };

    void rows_of_group(int bg) const {
        for (int t = 0; t < at.T; ++t)
            for (int d = 0; d < terms; ++d) {
                const int64_t from = (int64_t(bg) * at.T + t) * at.D + d, to = (int64_t(bg) * at.T + t) * terms + d;
                keys[to] = d < at.D ? element<Packed>(k[from]) : Packed(0);
                values[to] = d < at.D ? element<Packed>(v[from]) : Packed(0);
            }
        for (int d = 0; d < at.D; ++d)
            for (int t = 0; t < padded_T; ++t)
                keys_by_D[(int64_t(bg) * at.D + d) * padded_T + t] =
                    t < at.T ? element<Packed>(k[(int64_t(bg) * at.T + t) * at.D + d]) : Packed(0);
    }

    void pack_queries(Scratch& s, int bh, int first, int count) const {
        constexpr int STEP = Way::STEP;
        std::memset(s.queries_by_D, 0, sizeof(Packed) * BLOCK_QUERIES * terms);
        std::memset(s.douts_by_D, 0, sizeof(Packed) * BLOCK_QUERIES * terms);
        std::memset(s.queries, 0, sizeof(Packed) * BLOCK_QUERIES * padded_D);
        std::memset(s.douts, 0, sizeof(Packed) * BLOCK_QUERIES * padded_D);
        for (int i = 0; i < BLOCK_QUERIES; ++i) s.lse[i] = 0, s.delta[i] = 0;
        for (int i = 0; i < count; ++i) {
            const int64_t row = (int64_t(bh) * at.T + first + i) * at.D;
            const int tile = i / TILE_COLS, column = i % TILE_COLS;
            float delta = 0;
            for (int d = 0; d < at.D; ++d) {
                const Packed x = element<Packed>(q[row + d]), y = element<Packed>(dout[row + d]);
                const int by_D = tile * TILE_COLS * terms + (d / STEP * TILE_COLS + column) * STEP + d % STEP;
                s.queries_by_D[by_D] = x, s.douts_by_D[by_D] = y;
                const int by_query = d / TILE_COLS * TILE_COLS * BLOCK_QUERIES +
                                     (i / STEP * TILE_COLS + d % TILE_COLS) * STEP + i % STEP;
                s.queries[by_query] = x, s.douts[by_query] = y;
                delta += widen(dout[row + d]) * widen(out[row + d]);
            }
            s.delta[i] = delta;
            s.lse[i] = logsumexp[int64_t(bh) * at.T + first + i] * LOG2_E;
        }
    }

    void head(int bh, Scratch& s) const {
        const int64_t bg = int64_t(bh / at.H) * at.G + bh % at.H / (at.H / at.G);
        float* gradient_k = sum_dk + int64_t(bh) * at.T * padded_D;
        float* gradient_v = sum_dv + int64_t(bh) * at.T * padded_D;
        std::memset(gradient_k, 0, sizeof(float) * at.T * padded_D);
        std::memset(gradient_v, 0, sizeof(float) * at.T * padded_D);
        for (int first = 0; first < at.T; first += BLOCK_QUERIES) {
            const int count = std::min(BLOCK_QUERIES, at.T - first), columns = round_up(count, TILE_COLS);
            pack_queries(s, bh, first, count);
            std::memset(s.sum_dq, 0, sizeof(float) * at.D * BLOCK_QUERIES);
            const int seen = at.causal ? first + count : at.T;
            for (int start = 0; start < seen; start += BLOCK_KEYS) {
                const int rows = std::min(BLOCK_KEYS, seen - start);
                const int64_t row = (bg * at.T + start) * terms;
                for (int c = 0; c < columns; c += TILE_COLS) {
                    tiles<Way, false>(rows, keys + row, terms, s.queries_by_D + c * terms, terms, s.scores + c,
                                      BLOCK_QUERIES, s.ones);
                    tiles<Way, false>(rows, values + row, terms, s.douts_by_D + c * terms, terms, s.slopes + c,
                                      BLOCK_QUERIES, s.ones);
                }
                slope(s, rows, columns, first, count, start);
                const int pairs = round_up(rows, Way::STEP);
                for (int d = 0; d < padded_D; d += TILE_COLS) {
                    tiles<Way, true>(rows, s.weights, BLOCK_QUERIES, s.douts + d * BLOCK_QUERIES, columns,
                                     gradient_v + int64_t(start) * padded_D + d, padded_D, s.ones);
                    tiles<Way, true>(rows, s.steep, BLOCK_QUERIES, s.queries + d * BLOCK_QUERIES, columns,
                                     gradient_k + int64_t(start) * padded_D + d, padded_D, s.ones);
                }
                for (int c = 0; c < columns; c += TILE_COLS)
                    tiles<Way, true>(at.D, keys_by_D + bg * at.D * padded_T + start, padded_T, s.mixed + c * BLOCK_KEYS,
                                     pairs, s.sum_dq + c, BLOCK_QUERIES, s.ones);
            }
            for (int i = 0; i < count; ++i)
                for (int d = 0; d < at.D; ++d)
                    write(dq + (int64_t(bh) * at.T + first + i) * at.D + d, s.sum_dq[d * BLOCK_QUERIES + i] * at.scale);
        }
    }

    // Scores and slopes to weights and gradients of scores, as rows and packed. What is not seen has weight zero.
    void slope(Scratch& s, int rows, int columns, int first, int count, int start) const {
        const Vector factor = all(at.scale * LOG2_E);
        const bool all_seen = count == columns && !(at.causal && start + rows > first + 1);
        for (int r = 0; r < rows; r += Way::STEP) {
            for (int c = 0; c < columns; c += WIDTH) {
                Vector steep[Way::STEP] = {};
                for (int i = 0; i < Way::STEP && r + i < rows; ++i) {
                    const int place = (r + i) * BLOCK_QUERIES + c;
                    Vector p = exp2(load(s.scores + place) * factor - load(s.lse + c));
                    if (!all_seen)
                        for (int x = 0; x < WIDTH; ++x)
                            if (c + x >= count || (at.causal && start + r + i > first + c + x)) p[x] = 0;
                    steep[i] = p * (load(s.slopes + place) - load(s.delta + c));
                    Way::put(s.weights + place, p);
                    Way::put(s.steep + place, steep[i]);
                }
                const int tile = c / TILE_COLS, column = c % TILE_COLS;
                Way::interleave(s.mixed + tile * TILE_COLS * BLOCK_KEYS + (r / Way::STEP * TILE_COLS + column) * Way::STEP, steep);
            }
        }
    }

    // The heads of a group add up.
    void finish(int bg, int t) const {
        const int shared = at.H / at.G;
        const int64_t head = int64_t(bg / at.G) * at.H + bg % at.G * shared;
        for (int d = 0; d < at.D; ++d) {
            float a = 0, b = 0;
            for (int r = 0; r < shared; ++r) {
                const int64_t place = ((head + r) * at.T + t) * padded_D + d;
                a += sum_dk[place], b += sum_dv[place];
            }
            write(dk + (int64_t(bg) * at.T + t) * at.D + d, a * at.scale);
            write(dv + (int64_t(bg) * at.T + t) * at.D + d, b);
        }
    }

    int run() {
        terms = round_up(at.D, Way::STEP), padded_D = round_up(at.D, TILE_COLS), padded_T = round_up(at.T, BLOCK_KEYS);
        const int64_t groups = int64_t(at.B) * at.G, heads = int64_t(at.B) * at.H;
        const int64_t rows = round_up64(sizeof(Packed) * groups * at.T * terms);
        const int64_t columns = round_up64(sizeof(Packed) * groups * at.D * padded_T);
        const int64_t sums = round_up64(sizeof(float) * heads * at.T * padded_D);
        const int64_t by_D = round_up64(sizeof(Packed) * BLOCK_QUERIES * terms);
        const int64_t by_query = round_up64(sizeof(Packed) * BLOCK_QUERIES * padded_D);
        const int64_t fixed = round_up64(sizeof(Scratch));
        const int64_t own = fixed + 2 * by_D + 2 * by_query + round_up64(sizeof(float) * at.D * BLOCK_QUERIES);
        char* memory = static_cast<char*>(std::aligned_alloc(64, 2 * rows + columns + 2 * sums + own * at.threads));
        if (!memory) return 1;
        char* next = memory;
        auto take = [&next](int64_t bytes) { char* taken = next; next += bytes; return taken; };
        keys = reinterpret_cast<Packed*>(take(rows)), values = reinterpret_cast<Packed*>(take(rows));
        keys_by_D = reinterpret_cast<Packed*>(take(columns));
        sum_dk = reinterpret_cast<float*>(take(sums)), sum_dv = reinterpret_cast<float*>(take(sums));
        char* scratch = next;
#pragma omp parallel num_threads(at.threads)
        {
            char* mine = scratch + own * omp_get_thread_num();
            Scratch& s = *new (mine) Scratch;
            std::fill(s.ones, s.ones + 256, 1.0f);
            mine += fixed;
            s.queries_by_D = reinterpret_cast<Packed*>(mine), mine += by_D;
            s.douts_by_D = reinterpret_cast<Packed*>(mine), mine += by_D;
            s.queries = reinterpret_cast<Packed*>(mine), mine += by_query;
            s.douts = reinterpret_cast<Packed*>(mine), mine += by_query;
            s.sum_dq = reinterpret_cast<float*>(mine);
#pragma omp for schedule(static)
            for (int i = 0; i < groups; ++i) rows_of_group(i);
#pragma omp for schedule(dynamic, 1)
            for (int i = 0; i < heads; ++i) head(i, s);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < groups * at.T; ++i) finish(i / at.T, i % at.T);
        }
        std::free(memory);
        return 0;
    }
};

template <class Element, class Way>
int backward(const Problem& at, const void* q, const void* k, const void* v, const void* out, const void* dout,
             const float* logsumexp, void* dq, void* dk, void* dv) {
    Backward<Element, Way> it{at, static_cast<const Element*>(q), static_cast<const Element*>(k),
                              static_cast<const Element*>(v), static_cast<const Element*>(out),
                              static_cast<const Element*>(dout), logsumexp, static_cast<Element*>(dq),
                              static_cast<Element*>(dk), static_cast<Element*>(dv),
                              0, 0, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
    return it.run();
}

}  // namespace

// q, out, dout, dq [B, H, T, D]; k, v, dk, dv [B, G, T, D]: contiguous float (bf16 == 0) or bf16 (bf16 == 1), D <= 256.
// logsumexp [B, H, T] in natural units, as the forward saves it. Returns 0, or 1 where memory ran out.
extern "C" int archbench_attention_backward(int bf16, int B, int H, int G, int T, int D, float scale, int causal,
                                            int threads, const void* q, const void* k, const void* v, const void* out,
                                            const void* dout, const float* logsumexp, void* dq, void* dk, void* dv) {
    const Problem at{B, H, G, T, D, scale, causal != 0, threads};
    if (!bf16) return backward<float, Exact>(at, q, k, v, out, dout, logsumexp, dq, dk, dv);
#if defined(__AVX512BF16__)
    return backward<uint16_t, Pairs>(at, q, k, v, out, dout, logsumexp, dq, dk, dv);
#else
    return backward<uint16_t, Exact>(at, q, k, v, out, dout, logsumexp, dq, dk, dv);
#endif
}
