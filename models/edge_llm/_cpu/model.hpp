// A model in memory: its matrices in the order a pass reads them, norms, angles, the cache, and room for activations.
//
// The matrices of a layer lie one after the other: q, k and v as one; attention's output; gate and up, whose tiles
// alternate, so that the activation is applied where both are; down. The vocabulary's comes last.
//
// Letters: D head size, R query heads of a KV head.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "attention.hpp"
#include "matrices.hpp"
#include "team.hpp"

namespace edge {

constexpr int PIECE = 256;  // tokens of a prompt that go through a layer together
constexpr int MATRICES = 4;  // of a layer

struct Sizes {
    int32_t vocabulary, dim, layers, heads, kv_heads, head_dim, hidden, capacity, threads, weights, cache;
    float norm_eps, rope_theta;
};
enum { F32, F16, Q8_0, Q4_0 };                       // weights; a cache is one of the first three
enum { QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN };  // parts of a layer

struct Matrix {
    size_t offset;  // in the model's weights
    int columns, units, width;  // a unit is ``width`` tiles, whose rows belong together
    size_t tile_bytes;
    size_t bytes() const { return size_t(units) * width * tile_bytes; }
};

inline std::unique_ptr<Format> format_of(int weights) {
    switch (weights) {
        case F32: return std::make_unique<Plain<float>>();
        case F16: return std::make_unique<Plain<uint16_t>>();
        case Q8_0: return std::make_unique<Blocks<Q8>>();
        default: return std::make_unique<Blocks<Q4>>();
    }
}

inline std::unique_ptr<Cache> cache_of(const Sizes& s) {
    switch (s.cache) {
        case F32: return std::make_unique<CacheOf<float>>(s.layers, s.kv_heads, s.head_dim, s.capacity);
        case F16: return std::make_unique<CacheOf<uint16_t>>(s.layers, s.kv_heads, s.head_dim, s.capacity);
        default: return std::make_unique<CacheOf<int8_t>>(s.layers, s.kv_heads, s.head_dim, s.capacity);
    }
}

// What a thread needs for itself.
struct Bench {
    Bench(const Format& format, const Sizes& s, int widest, int padded_D)
        : activations_(format.activation_bytes(widest)),
          floats_(sizeof(float) * (size_t(widest) + size_t(MAX_ROWS) * (s.head_dim + 2 * CHUNK + padded_D + 4))) {
        row = floats_.floats();
        q = row + widest;
        scores = q + MAX_ROWS * s.head_dim;
        weights = scores + MAX_ROWS * CHUNK;
        sums = weights + MAX_ROWS * CHUNK;
        keep = sums + MAX_ROWS * padded_D;
        largest = keep + MAX_ROWS;  // and totals, as many
        seen = reinterpret_cast<int32_t*>(largest + 2 * MAX_ROWS);
    }
    uint8_t* activations() const { return activations_.bytes(); }
    float *row, *q, *scores, *weights, *sums, *keep, *largest;
    int32_t* seen;

  private:
    Memory activations_, floats_;
};

struct Model {
    explicit Model(const Sizes& sizes)
        : at(sizes), R(at.heads / at.kv_heads), kv_rows(round_up(at.kv_heads * at.head_dim, WIDTH)),
          q_rows(round_up(at.heads * at.head_dim, WIDTH)), qkv_rows(q_rows + 2 * kv_rows), dim_rows(round_up(at.dim, WIDTH)),
          hidden_rows(round_up(at.hidden, WIDTH)), widest(round_up(std::max(hidden_rows, std::max(dim_rows, q_rows)), 64)),
          padded_D(round_up(at.head_dim, PAIR)), chunks((at.capacity + CHUNK - 1) / CHUNK), format(format_of(at.weights)),
          cache(cache_of(at)), norms(size_t(2 * at.layers + 1) * at.dim), angles(size_t(at.capacity) * at.head_dim),
          weights(place(), true), x(size_t(PIECE) * dim_rows * 4), qkv(size_t(PIECE) * qkv_rows * 4),
          mixed(size_t(PIECE) * q_rows * 4), hidden(size_t(PIECE) * hidden_rows * 4),
          activations(format->activation_bytes(widest) * PIECE),
          parts(size_t(at.heads) * chunks * (padded_D + 2) * 4) {
        for (int i = 0; i < at.threads; ++i) benches.push_back(std::make_unique<Bench>(*format, at, widest, padded_D));
        for (int p = 0; p < at.capacity; ++p)
            for (int i = 0; i < at.head_dim; i += 2) {
                const double angle = p * std::pow(double(at.rope_theta), -double(i) / at.head_dim);
                angles[size_t(p) * at.head_dim + i] = float(std::cos(angle));
                angles[size_t(p) * at.head_dim + i + 1] = float(std::sin(angle));
            }
    }

    // Rows [count][stride bytes] of a part of a layer, as GGUF has them; layer ``layers`` is the vocabulary.
    void pack(int layer, int part, const uint8_t* raw, int64_t stride, int count) {
        static constexpr int WHICH[] = {0, 0, 0, 1, 2, 2, 3};
        const int firsts[] = {0, q_rows / WIDTH, (q_rows + kv_rows) / WIDTH, 0, 0, 1, 0};
        const Matrix& m = matrices[MATRICES * layer + (layer == at.layers ? 0 : WHICH[part])];
        const int first = layer == at.layers ? 0 : firsts[part];
#pragma omp parallel for num_threads(at.threads)
        for (int i = 0; i < (count + WIDTH - 1) / WIDTH; ++i)
            format->pack(raw + int64_t(i) * WIDTH * stride, stride, std::min(WIDTH, count - i * WIDTH), m.columns,
                         unit(m, 0) + size_t(first + i * m.width) * m.tile_bytes);
    }

    uint8_t* unit(const Matrix& m, int i) const { return weights.bytes() + m.offset + size_t(i) * m.width * m.tile_bytes; }
    // What a thread gathered for a token's R queries of a KV head in a chunk: sums [R][padded D], largest [R], totals [R].
    float* part(int head, int chunk) const { return parts.floats() + size_t(head * chunks + chunk) * R * (padded_D + 2); }

    const Sizes at;
    const int R, kv_rows, q_rows, qkv_rows, dim_rows, hidden_rows, widest, padded_D, chunks;
    const std::unique_ptr<Format> format;
    const std::unique_ptr<Cache> cache;
    std::vector<Matrix> matrices;
    std::vector<float> norms, angles;  // of attention and feed-forward in turn, then the last; cosine and sine by turns
    const uint8_t* embedding = nullptr;
    int64_t embedding_stride = 0;
    Memory weights, x, qkv, mixed, hidden, activations, parts;
    std::vector<std::unique_ptr<Bench>> benches;
    Barrier gate;
    std::atomic<int> next{0};  // block of a prompt's queries

  private:
    // The places of all matrices; their bytes.
    size_t place() {
        const auto add = [&](int rows, int columns, int width) {
            const size_t offset = matrices.empty() ? 0 : matrices.back().offset + (matrices.back().bytes() + 63) / 64 * 64;
            matrices.push_back({offset, columns, rows / WIDTH, width, format->tile_bytes(columns)});
        };
        for (int layer = 0; layer < at.layers; ++layer) {
            add(qkv_rows, at.dim, 1);
            add(dim_rows, at.heads * at.head_dim, 1);
            add(hidden_rows, at.dim, 2);
            add(dim_rows, at.hidden, 1);
        }
        add(round_up(at.vocabulary, WIDTH), at.dim, 1);
        return matrices.back().offset + matrices.back().bytes();
    }
};

}  // namespace edge
