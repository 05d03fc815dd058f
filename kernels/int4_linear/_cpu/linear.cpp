// Linear layers with 4-bit weights for CPUs, as C functions: made, filled, applied.
//
// The layers' tiles (matrices.hpp) lie one after the other, and a thread takes the next few of them whenever it is done with
// those before: one that wakes up late, as threads of a virtual machine do, takes fewer, and nobody waits for its half.
// Activations are rounded to 8 bits once for all layers, into memory that is kept: fresh pages cost 5 % of a product of 197
// tokens. Many tokens come in pieces that stay in the second-level cache beside a tile.
//
// Letters: M tokens, K inputs, N outputs.

#include <omp.h>

#include <algorithm>
#include <atomic>

#include "matrices.hpp"
#include "team.hpp"

namespace {

using namespace lanes;

constexpr size_t PIECE_BYTES = 256 << 10;  // of activations
constexpr int MOST_TILES = 16;             // that a thread takes at once

struct Layers {
    Layers(int layers, int M, int N, int K, int threads)
        : layers(layers), M(M), N(N), K(K), threads(threads), tiles((N + WIDTH - 1) / WIDTH),
          tile_bytes(format.tile_bytes(K)), token_bytes(format.activation_bytes(K)),
          weights(size_t(layers) * tiles * tile_bytes, true), activations(size_t(M) * token_bytes + 64) {}

    uint8_t* tile(int layer, int i) const { return weights.bytes() + (size_t(layer) * tiles + i) * tile_bytes; }

    // x [M][K] -> activations, a group of tokens after the other.
    void round(const float* x, Share mine) const {
        for (int t = mine.first; t < mine.last; ++t) {
            const int start = t / GROUP * GROUP;
            uint8_t* group = activations.bytes() + start * token_bytes;
            format.prepare(x + size_t(t) * K, K, group, t - start, std::min(GROUP, M - start));
        }
    }

    // Tiles of all layers, counted through: y [layers][M][N].
    void multiply(Share mine, float* y) const {
        const int piece = std::max<int>(1, int(PIECE_BYTES / token_bytes / GROUP)) * GROUP;
        for (int layer = mine.first / tiles; layer * tiles < mine.last; ++layer) {
            const int before = layer * tiles;
            const Share own(std::max(0, mine.first - before), std::min(tiles, mine.last - before));
            for (int first = 0; first < M; first += piece)
                multiply(layer, own, first, std::min(M, first + piece), y + size_t(layer) * M * N);
        }
    }

    // Tiles of a layer times tokens [first, last): y [M][N] of the layer.
    void multiply(int layer, Share mine, int first, int last, float* y) const {
        alignas(64) float sums[GROUP * WIDTH];
        for (int i = mine.first; i < mine.last; ++i)
            for (int start = first; start < last; start += GROUP) {
                const int n = std::min(GROUP, M - start), rows = std::min(WIDTH, N - i * WIDTH);
                format.multiply(tile(layer, i), K, activations.bytes() + start * token_bytes, n, sums);
                for (int t = 0; t < n; ++t)
                    std::memcpy(y + size_t(start + t) * N + i * WIDTH, sums + t * WIDTH, rows * sizeof(float));
            }
    }

    const Blocks<Q4> format{};
    const int layers, M, N, K, threads, tiles;
    const size_t tile_bytes, token_bytes;
    const Memory weights, activations;
};

const Layers& at(void* layers) { return *static_cast<Layers*>(layers); }

}  // namespace

// Null where memory ran out.
extern "C" void* archbench_int4_new(int layers, int M, int N, int K, int threads) {
    try {
        return new Layers(layers, M, N, K, threads);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

extern "C" void archbench_int4_free(void* layers) { delete static_cast<Layers*>(layers); }

// A layer's rows [N][stride bytes] as blocks of GGUF's q4_0. Copied.
extern "C" void archbench_int4_pack(void* layers, int layer, const uint8_t* raw, int64_t stride) {
    const Layers& to = at(layers);
#pragma omp parallel for num_threads(to.threads)
    for (int i = 0; i < to.tiles; ++i)
        to.format.pack(raw + int64_t(i) * WIDTH * stride, stride, std::min(WIDTH, to.N - i * WIDTH), to.K, to.tile(layer, i));
}

// x [M][K] -> y [layers][M][N]. One call at a time: the rounded activations have one place.
extern "C" void archbench_int4_multiply(void* layers, const float* x, float* y) {
    const Layers& from = at(layers);
    const bool few = from.M <= GROUP;
    const int tiles = from.layers * from.tiles, taken = std::clamp(tiles / (8 * from.threads), 1, MOST_TILES);
    std::atomic<int> next{0};
    if (few) from.round(x, Share(from.M, 0, 1));
#pragma omp parallel num_threads(from.threads)
    {
        if (!few) {
            from.round(x, Share(from.M, omp_get_thread_num(), omp_get_num_threads()));
#pragma omp barrier
        }
        for (int first; (first = next.fetch_add(taken, std::memory_order_relaxed)) < tiles;)
            from.multiply(Share(first, std::min(tiles, first + taken)), y);
    }
}
