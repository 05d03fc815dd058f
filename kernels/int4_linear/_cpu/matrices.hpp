// Matrices in the order they are read in, and their products with a few tokens at a time.
//
// A tile is WIDTH rows of a matrix, a row per lane, so no sum is taken across a vector. A tile of quantised weights is a
// sequence of steps of two blocks (BLOCK columns each): the bytes of both, then their scales, WIDTH halves for each block;
// with 16 lanes that are 9 cache lines for 4-bit weights. Tiles lie one after the other, so a thread's share of a matrix is
// one stream of memory.
//
// Activations are quantised to 8 bits a block. They lie in groups of up to GROUP tokens, which a tile is multiplied with
// while its weights are in registers: per block [token][BLOCK] bytes, [token] scales, [token] starts. A start is what the
// sum of a block begins with: minus the weights' offset (8 of 4-bit weights) times the block's sum. A block with a number that
// is not finite has a scale that is none: whatever is multiplied with it is not a number either.
//
// Letters: n tokens of a group. Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (block_q4_0, q8_0)
#pragma once

#include <cstddef>
#include <utility>

#include "vectors.hpp"

namespace lanes {

// How weights of a kind are packed and multiplied.
struct Format {
    virtual ~Format() = default;
    virtual size_t tile_bytes(int columns) const = 0;
    virtual size_t activation_bytes(int columns) const = 0;  // of a token; a multiple of 8
    // rows (at most WIDTH) rows as GGUF has them, into a tile.
    virtual void pack(const uint8_t* raw, int64_t stride, int rows, int columns, uint8_t* tile) const = 0;
    virtual void unpack_row(const uint8_t* raw, int columns, float* out) const = 0;
    // Token i of a group of n: from x[columns].
    virtual void prepare(const float* x, int columns, uint8_t* group, int i, int n) const = 0;
    // out[n][WIDTH] = tile * group.
    virtual void multiply(const uint8_t* tile, int columns, const uint8_t* group, int n, float* out) const = 0;
};

// The product for a number of tokens, from 1 to GROUP: each is compiled for its number.
template <class Self>
struct Grouped : Format {
    using Product = void (*)(const uint8_t* tile, int columns, const uint8_t* group, float* out);

    void multiply(const uint8_t* tile, int columns, const uint8_t* group, int n, float* out) const override {
        of(n, std::make_integer_sequence<int, GROUP>())(tile, columns, group, out);
    }

  private:
    template <int... N>
    static Product of(int n, std::integer_sequence<int, N...>) {
        static constexpr Product products[] = {&Self::template product<N + 1>...};
        return products[n - 1];
    }
};

template <class Kind>
struct Blocks final : Grouped<Blocks<Kind>> {
    static constexpr int SCALES = 2 * WIDTH * int(sizeof(uint16_t)), STEP = 2 * Kind::BYTES + SCALES;
    static constexpr int TOKEN = BLOCK + 8;  // of a token's block

    static int steps(int columns) { return (columns + 2 * BLOCK - 1) / (2 * BLOCK); }
    size_t tile_bytes(int columns) const override { return size_t(steps(columns)) * STEP; }
    size_t activation_bytes(int columns) const override { return size_t(steps(columns)) * 2 * TOKEN; }

    void pack(const uint8_t* raw, int64_t stride, int rows, int columns, uint8_t* tile) const override {
        std::memset(tile, 0, tile_bytes(columns));
        for (int block = 0; block < columns / BLOCK; ++block) {
            uint8_t* bytes = tile + int64_t(block / 2) * STEP + block % 2 * Kind::BYTES;
            uint8_t* scales = tile + int64_t(block / 2) * STEP + 2 * Kind::BYTES + block % 2 * WIDTH * 2;
            for (int row = 0; row < rows; ++row) {
                const uint8_t* source = raw + row * stride + int64_t(block) * (2 + Kind::BYTES / WIDTH);
                std::memcpy(scales + 2 * row, source, 2);
                for (int i = 0; i < Kind::BYTES / WIDTH; i += 4) {
                    uint32_t four;
                    std::memcpy(&four, source + 2 + i, 4);
                    four ^= Kind::FLIPPED;
                    std::memcpy(bytes + i * WIDTH + 4 * row, &four, 4);
                }
            }
        }
    }

    void unpack_row(const uint8_t* raw, int columns, float* out) const override {
        for (int block = 0; block < columns / BLOCK; ++block, raw += 2 + Kind::BYTES / WIDTH, out += BLOCK) {
            uint16_t half;
            std::memcpy(&half, raw, 2);
            for (int i = 0; i < BLOCK; ++i) out[i] = widen(half) * Kind::value(raw + 2, i);
        }
    }

    void prepare(const float* x, int columns, uint8_t* group, int i, int n) const override {
        const Vector magic = all(12582912.0f);
        constexpr int VECTORS = BLOCK / WIDTH;
        for (int block = 0; block < 2 * steps(columns); ++block, x += BLOCK, group += TOKEN * n) {
            float scale = 0;
            int32_t start = 0;
            int8_t* q = reinterpret_cast<int8_t*>(group) + BLOCK * i;
            if (block < columns / BLOCK) {
                Vector v[VECTORS], most = Vector{};
                for (int j = 0; j < VECTORS; ++j) v[j] = load(x + j * WIDTH), most = larger(most, larger(v[j], -v[j]));
                const float amax = max_of(most);
                const Vector inverse = all(amax > 0x1p-110f ? 127 / amax : 0);  // below, 127 / amax may be infinite
                Vector sum = Vector{};
                for (int j = 0; j < VECTORS; ++j) {
                    const Vector rounded = v[j] * inverse + magic;
                    sum += rounded - magic;
                    const Integers whole = reinterpret_cast<Integers>(rounded) - reinterpret_cast<Integers>(magic);
                    *reinterpret_cast<LooseNarrow*>(q + j * WIDTH) = __builtin_convertvector(whole, Narrow);
                }
                const float total = sum_of(sum);  // not a number where a number of the block is not finite
                if (total == total) scale = amax / 127, start = -Kind::ZERO * int32_t(total);
                else scale = total;
            } else {
                std::memset(q, 0, BLOCK);
            }
            std::memcpy(group + BLOCK * n + 4 * i, &scale, 4);
            std::memcpy(group + (BLOCK + 4) * n + 4 * i, &start, 4);
        }
    }

    template <int N>
    static void product(const uint8_t* tile, int columns, const uint8_t* group, float* out) {
        Vector sum[N] = {};
        for (int step = steps(columns); step > 0; --step, tile += STEP) {
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half, group += TOKEN * N) {
                Bytes w[OPERANDS];
                Kind::operands(tile + half * Kind::BYTES, w);
                const Vector scale = widened(reinterpret_cast<const uint16_t*>(tile + 2 * Kind::BYTES) + half * WIDTH);
                const float* scales = reinterpret_cast<const float*>(group + BLOCK * N);
                const int32_t* starts = reinterpret_cast<const int32_t*>(scales + N);
#pragma GCC unroll 16
                for (int t = 0; t < N; ++t) {
                    const int8_t* a = reinterpret_cast<const int8_t*>(group) + BLOCK * t;
                    sum[t] += floats(products<Kind::SMALL>(w, a, starts[t])) * (scale * all(scales[t]));
                }
            }
        }
        for (int t = 0; t < N; ++t) store(out + t * WIDTH, sum[t]);
    }
};

struct Q4 {  // byte i of a block: column i in the low half, column i + 16 in the high one
    static constexpr int BYTES = BLOCK / 2 * WIDTH, ZERO = 8;
    static constexpr bool SMALL = true;
    static constexpr uint32_t FLIPPED = 0;  // bits of four bytes, between a file and a tile
    static float value(const uint8_t* q, int i) { return float((i < 16 ? q[i] & 15 : q[i - 16] >> 4) - 8); }
    static void operands(const uint8_t* p, Bytes* w) {
#pragma GCC unroll 4
        for (int i = 0; i < OPERANDS / 2; ++i) {
            const Bytes both = load_bytes(p + i * 4 * WIDTH);
            w[i] = low_nibbles(both), w[i + OPERANDS / 2] = high_nibbles(both);
        }
    }
};

struct Q8 {
    static constexpr int BYTES = BLOCK * WIDTH, ZERO = OFFSET;
    static constexpr bool SMALL = false;
    static constexpr uint32_t FLIPPED = OFFSET ? 0x80808080 : 0;  // adds 128 to each byte
    static float value(const uint8_t* q, int i) { return float(int8_t(q[i])); }
    static void operands(const uint8_t* p, Bytes* w) {
#pragma GCC unroll 8
        for (int i = 0; i < OPERANDS; ++i) w[i] = load_bytes(p + i * 4 * WIDTH);
    }
};

inline float element(const uint16_t* p) { return widen(*p); }
inline float element(const float* p) { return *p; }

// Halves or floats: [column][WIDTH], activations [column][n] floats; columns rounded up to PARTS.
template <class Element>
struct Plain final : Grouped<Plain<Element>> {
    static constexpr int PARTS = 4;  // sums of a single token, so that one addition need not wait for the one before

    size_t tile_bytes(int columns) const override { return size_t(round_up(columns, PARTS)) * WIDTH * sizeof(Element); }
    size_t activation_bytes(int columns) const override { return size_t(round_up(columns, PARTS)) * sizeof(float); }

    void pack(const uint8_t* raw, int64_t stride, int rows, int columns, uint8_t* tile) const override {
        std::memset(tile, 0, tile_bytes(columns));
        Element* place = reinterpret_cast<Element*>(tile);
        for (int row = 0; row < rows; ++row)
            for (int c = 0; c < columns; ++c)
                std::memcpy(place + int64_t(c) * WIDTH + row, raw + row * stride + c * sizeof(Element), sizeof(Element));
    }

    void unpack_row(const uint8_t* raw, int columns, float* out) const override {
        for (int c = 0; c < columns; ++c) out[c] = element(reinterpret_cast<const Element*>(raw) + c);
    }

    void prepare(const float* x, int columns, uint8_t* group, int i, int n) const override {
        float* target = reinterpret_cast<float*>(group) + i;
        for (int c = 0; c < round_up(columns, PARTS); ++c) target[c * n] = c < columns ? x[c] : 0;
    }

    template <int N>
    static void product(const uint8_t* tile, int columns, const uint8_t* group, float* out) {
        constexpr int SUMS = N == 1 ? PARTS : 1;
        Vector sum[SUMS][N] = {};
        const Element* w = reinterpret_cast<const Element*>(tile);
        const float* x = reinterpret_cast<const float*>(group);
        for (int c = 0; c < columns; c += PARTS)
#pragma GCC unroll 4
            for (int part = 0; part < PARTS; ++part, w += WIDTH, x += N) {
                const Vector row = widened(w);
#pragma GCC unroll 16
                for (int t = 0; t < N; ++t) sum[part % SUMS][t] += row * all(x[t]);
            }
        for (int t = 0; t < N; ++t) {
            for (int part = 1; part < SUMS; ++part) sum[0][t] += sum[part][t];
            store(out + t * WIDTH, sum[0][t]);
        }
    }
};

}  // namespace lanes
