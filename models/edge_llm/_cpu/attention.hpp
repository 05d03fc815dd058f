// Attention over a cache of keys and values, for one query of a text or for a block of a prompt.
//
// Keys and values of a KV head lie in chunks of CHUNK positions, in panels of PAIR columns that the same register tile
// reads: keys [panel of positions][D][PAIR], so that a lane is a position and no sum is taken across a vector, values
// [panel of D][position][PAIR]. The query heads of the group share what is loaded. A chunk's scores become weights with a
// running maximum and sum; sums of chunks that several threads made are merged afterwards. A cache in 8 bits has a scale
// for BLOCK elements of a key or a value: it multiplies a column of scores, or a weight.
//
// Letters: R query heads of a KV head, D head size, M rows of queries.
// Source: Milakov & Gimelshein 2018, arXiv:1805.02867; Dao et al. 2023, https://pytorch.org/blog/flash-decoding
#pragma once

#include <memory>
#include <type_traits>

#include "team.hpp"
#include "vectors.hpp"

namespace edge {

using namespace lanes;

constexpr int CHUNK = 128, PAIR = 2 * WIDTH, MAX_ROWS = 48;
constexpr float MASKED = -1e30f;

// Queries of one KV head, and what they have gathered so far.
struct Rows {
    int count;
    const float* q;  // [M][D], scaled by log2(e) / sqrt(D)
    const int32_t* seen;  // [M] positions that each may see
    float *largest, *total, *sums;  // [M], [M], [M][padded D]
    float *scores, *weights, *keep;  // scratch: [M][CHUNK] twice, [M]
};

struct Cache {
    virtual ~Cache() = default;
    virtual void write(int layer, int head, int position, const float* key, const float* value) = 0;
    virtual void attend(int layer, int head, int chunk, const Rows& rows) const = 0;
};

// c[ROWS][PAIR] = (ADD ? keep[row] * c : 0) + scale[column] * a[ROWS][terms] * panel[terms][PAIR]; no scales: 1.
template <int ROWS, bool ADD, class Element>
inline void tile(const float* a, int stride, const Element* panel, int terms, const uint16_t* scale, float* c,
                 int stride_c, const float* keep) {
    Vector sum[ROWS][2] = {};
    for (int k = 0; k < terms; ++k, panel += PAIR) {
        const Vector left = widened(panel), right = widened(panel + WIDTH);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const Vector x = all(a[r * stride + k]);
            sum[r][0] += x * left, sum[r][1] += x * right;
        }
    }
    for (int v = 0; v < 2; ++v) {
        const Vector factor = scale ? widened(scale + v * WIDTH) : all(1);
        for (int r = 0; r < ROWS; ++r) {
            float* out = c + r * stride_c + v * WIDTH;
            store(out, (ADD ? load(out) * all(keep[r]) : Vector{}) + sum[r][v] * factor);
        }
    }
}

template <int ROWS, bool ADD, class Element>
void tiles(int rows, const float* a, int stride, const Element* panel, int terms, const uint16_t* scale, float* c,
                  int stride_c, const float* keep) {
    for (; rows >= ROWS; rows -= ROWS, a += ROWS * stride, c += ROWS * stride_c, keep += ROWS)
        tile<ROWS, ADD>(a, stride, panel, terms, scale, c, stride_c, keep);
    if constexpr (ROWS > 1)
        if (rows) tiles<ROWS - 1, ADD>(rows, a, stride, panel, terms, scale, c, stride_c, keep);
}

template <class Element>
class CacheOf final : public Cache {
  public:
    CacheOf(int layers, int heads, int head_dim, int capacity)
        : heads_(heads), D_(head_dim), padded_(round_up(head_dim, PAIR)), blocks_(QUANTISED ? head_dim / BLOCK : 0),
          chunks_((capacity + CHUNK - 1) / CHUNK),
          chunk_bytes_(size_t(CHUNK) * (size_t(D_ + padded_) * sizeof(Element) + 2 * blocks_ * sizeof(uint16_t))),
          memory_(std::make_unique<Memory>(chunk_bytes_ * chunks_ * heads * layers, true)) {}

    void write(int layer, int head, int position, const float* key, const float* value) override {
        const Parts at = parts(layer, head, position / CHUNK);
        const int p = position % CHUNK;
        Element* k = at.keys + p / PAIR * D_ * PAIR + p % PAIR;
        if constexpr (QUANTISED) {
            for (int block = 0; block < blocks_; ++block) {
                const float ks = scale(key + block * BLOCK, at.key_scales + block * CHUNK + p);
                const float vs = scale(value + block * BLOCK, at.value_scales + block * CHUNK + p);
                for (int d = block * BLOCK; d < (block + 1) * BLOCK; ++d) {
                    k[d * PAIR] = int8_t(std::nearbyint(key[d] * ks));
                    at.values[(d / PAIR * CHUNK + p) * PAIR + d % PAIR] = int8_t(std::nearbyint(value[d] * vs));
                }
            }
        } else {
            for (int d = 0; d < D_; ++d) {
                k[d * PAIR] = stored(key[d]);
                at.values[(d / PAIR * CHUNK + p) * PAIR + d % PAIR] = stored(value[d]);
            }
        }
    }

    void attend(int layer, int head, int chunk, const Rows& rows) const override {
        const Parts at = parts(layer, head, chunk);
        int positions = 0;  // of this chunk, that any row sees
        for (int r = 0; r < rows.count; ++r) positions = std::max(positions, rows.seen[r] - chunk * CHUNK);
        positions = std::min(positions, CHUNK);
        const int columns = round_up(positions, PAIR);
        const int terms = QUANTISED ? BLOCK : D_;  // of a key that share a scale
        std::fill(rows.keep, rows.keep + rows.count, 1.0f);
        for (int c = 0; c < columns; c += PAIR)
            for (int d = 0; d < D_; d += terms) {
                const auto score = d == 0 ? tiles<QUERIES, false, Element> : tiles<QUERIES, true, Element>;
                const uint16_t* scales = QUANTISED ? at.key_scales + d / BLOCK * CHUNK + c : nullptr;
                score(rows.count, rows.q + d, D_, at.keys + c * D_ + d * PAIR, terms, scales, rows.scores + c, CHUNK,
                      rows.keep);
            }
        soften(rows, chunk, columns);
        const float* weights = rows.scores;
        for (int d = 0; d < padded_; d += PAIR) {
            if constexpr (QUANTISED) {
                if (d % BLOCK == 0)
                    for (int r = 0; r < rows.count; ++r)
                        for (int p = 0; p < columns; p += WIDTH)
                            store(rows.weights + r * CHUNK + p,
                                  load(rows.scores + r * CHUNK + p) * widened(at.value_scales + d / BLOCK * CHUNK + p));
                weights = rows.weights;
            }
            tiles<QUERIES, true>(rows.count, weights, CHUNK, at.values + d * CHUNK, positions, nullptr, rows.sums + d,
                                 padded_, rows.keep);
        }
    }

  private:
    static constexpr bool QUANTISED = std::is_same_v<Element, int8_t>;
    struct Parts {
        Element *keys, *values;
        uint16_t *key_scales, *value_scales;  // [block of D][position]
    };

    Parts parts(int layer, int head, int chunk) const {
        uint8_t* base = memory_->bytes() + chunk_bytes_ * ((size_t(layer) * heads_ + head) * chunks_ + chunk);
        Element* keys = reinterpret_cast<Element*>(base);
        Element* values = keys + CHUNK * D_;
        uint16_t* scales = reinterpret_cast<uint16_t*>(values + CHUNK * padded_);
        return {keys, values, scales, scales + CHUNK * blocks_};
    }

    static Element stored(float x) {
        if constexpr (std::is_same_v<Element, float>) return x;
        else return narrow(x);
    }

    // A block's scale into its place; what its elements are multiplied with.
    static float scale(const float* x, uint16_t* place) {
        float most = 0;
        for (int i = 0; i < BLOCK; ++i) most = std::max(most, std::fabs(x[i]));
        *place = narrow(most / 127);
        return most > 0 ? 127 / most : 0;
    }

    // Scores to weights: what is not seen weighs nothing, and what was gathered before shrinks by ``keep``.
    static void soften(const Rows& rows, int chunk, int columns) {
        for (int r = 0; r < rows.count; ++r) {
            float* row = rows.scores + r * CHUNK;
            for (int c = std::max(0, rows.seen[r] - chunk * CHUNK); c < columns; ++c) row[c] = MASKED;
            Vector most = load(row);
            for (int c = WIDTH; c < columns; c += WIDTH) most = larger(most, load(row + c));
            const float before = rows.largest[r], now = std::max(before, max_of(most));
            Vector total = Vector{};
            for (int c = 0; c < columns; c += WIDTH) {
                const Vector weight = exp2(load(row + c) - all(now));
                store(row + c, weight);
                total += weight;
            }
            rows.keep[r] = std::exp2(before - now);
            rows.total[r] = rows.total[r] * rows.keep[r] + sum_of(total);
            rows.largest[r] = now;
        }
    }

    int heads_, D_, padded_, blocks_, chunks_;
    size_t chunk_bytes_;
    std::unique_ptr<Memory> memory_;
};

}  // namespace edge
