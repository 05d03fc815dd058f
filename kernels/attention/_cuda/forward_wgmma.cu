// Forward on Hopper: one warp feeds, the others multiply in groups of four, and never wait for a product they can overlap.
//
// The first warp group gives its registers away; one thread of it has the copy engine bring tiles of K and V, two of each
// at a time. Every other group owns 64 queries. Its products run while it computes: the scores of block j + 1 are under
// way while the weights of block j are multiplied with V, and the softmax of block j + 1 runs beside that product.
// The tiles are those of tiles.cuh, panels of 64 columns; what the copy engine and wgmma call 128-byte swizzle.
//
// Source: Shah et al. 2024, arXiv:2407.08608, algorithm 2; PTX ISA, matrix descriptors of wgmma
#include <softmax.cuh>
#include <wgmma_tiles.cuh>

namespace {

constexpr int GROUPS = D == 64 ? 3 : 2;  // that multiply
constexpr int THREADS = (GROUPS + 1) * 128;
constexpr int BLOCK_Q = GROUPS * 64;
constexpr int BLOCK_K = 128;
constexpr int STAGES = 2;
// Of a thread that feeds, and of one that multiplies; together no more than the multiprocessor has.
constexpr int REGISTERS_FEED = D == 64 ? 32 : 24;
constexpr int REGISTERS_MULTIPLY = D == 64 ? 160 : 240;
static_assert((REGISTERS_FEED + GROUPS * REGISTERS_MULTIPLY) * 128 <= 65536);
// A group may leave blocks of the last stages to others, as nobody waits for their release.
static_assert(BLOCK_Q - 64 <= STAGES * BLOCK_K);

using Scores = float[BLOCK_K / 8][4];
using Output = float[D / 8][4];
using Weights = Bits32[BLOCK_K / 16][4];

// What shared memory holds. Barriers: Q is there; for each stage K is there, V is there, K and V are no longer needed.
struct Layout {
    Bits32 q;
    INLINE Layout() : q(shared_memory()) {}
    INLINE Bits32 k(int stage) const { return q + TILE_BYTES<BLOCK_Q> + stage * TILE_BYTES<BLOCK_K>; }
    INLINE Bits32 v(int stage) const { return k(STAGES + stage); }
    INLINE Bits32 q_here() const { return k(2 * STAGES); }
    INLINE Bits32 k_here(int stage) const { return q_here() + 8 + stage * 8; }
    INLINE Bits32 v_here(int stage) const { return k_here(STAGES + stage); }
    INLINE Bits32 k_free(int stage) const { return k_here(2 * STAGES + stage); }
    INLINE Bits32 v_free(int stage) const { return k_here(3 * STAGES + stage); }
};

INLINE void feed(const Layout& at, const MappedProblem& p, int first, int blocks) {
    const int kv_head = block_y() / p.plain.shared;
    fetch_tile<BLOCK_Q>(at.q, p.q, first, block_y(), at.q_here());
    for (int block = 0; block < blocks; block++) {
        const int stage = block % STAGES, parity = (block / STAGES + 1) % 2;
        if (block >= STAGES) barrier_wait(at.k_free(stage), parity);
        fetch_tile<BLOCK_K>(at.k(stage), p.k, block * BLOCK_K, kv_head, at.k_here(stage));
        if (block >= STAGES) barrier_wait(at.v_free(stage), parity);
        fetch_tile<BLOCK_K>(at.v(stage), p.v, block * BLOCK_K, kv_head, at.v_here(stage));
    }
}

// Start scores = queries times keys.
INLINE void start_scores(Scores& scores, Bits32 q, Bits32 k) {
    wgmma_begin();
#pragma unroll
    for (int step = 0; step < D / 16; step++)
        wgmma(scores, matrix(q + step / 4 * BLOCK_Q * 128 + step % 4 * 32, 16),
              matrix(k + step / 4 * BLOCK_K * 128 + step % 4 * 32, 16), step > 0);
    wgmma_commit();
}

// Start out += weights times values.
INLINE void start_output(Output& out, const Weights& weights, Bits32 v) {
    wgmma_begin();
#pragma unroll
    for (int step = 0; step < BLOCK_K / 16; step++) wgmma(out, weights[step], matrix(v + step * 16 * 128, BLOCK_K * 128));
    wgmma_commit();
}

INLINE void round(Weights& weights, const Scores& scores) {
#pragma unroll
    for (int step = 0; step < BLOCK_K / 16; step++) as_left(weights[step], scores[step * 2], scores[step * 2 + 1]);
}

}  // namespace

// Grid (blocks of queries, B * H).
KERNEL void __launch_bounds__(THREADS, 1) forward_wgmma(const __grid_constant__ MappedProblem mapped) {
    const Problem& p = mapped.plain;
    const Layout at;
    const int group = thread_index() / 128;
    if (thread_index() == 0) {
        barrier_init(at.q_here(), 1);
#pragma unroll
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_init(at.k_here(stage), 1);
            barrier_init(at.v_here(stage), 1);
            barrier_init(at.k_free(stage), GROUPS * 4);
            barrier_init(at.v_free(stage), GROUPS * 4);
        }
        barrier_init_fence();
    }
    block_barrier();
    // Under a causal mask the last block has most to do: it starts first, so that none is left alone at the end.
    const int first = (blocks_x() - 1 - block_x()) * BLOCK_Q;
    const auto blocks_until = [&](int query) {
        return ((CAUSAL ? min(query, p.length) : p.length) + BLOCK_K - 1) / BLOCK_K;
    };
    if (group == 0) {
        give_registers<REGISTERS_FEED>();
        if (thread_index() == 0) feed(at, mapped, first, blocks_until(first + BLOCK_Q));
        return;
    }
    take_registers<REGISTERS_MULTIPLY>();
    const int group_row = (group - 1) * 64;
    const int row = group_row + warp_index() % 4 * 16;
    const Bits32 q = at.q + group_row * 128;
    const int blocks = blocks_until(first + group_row + 64);
    const auto release = [](Bits32 barrier) {
        if (lane_index() == 0) barrier_arrive(barrier);
    };
    const auto wait_for_keys = [&](int block) {
        if (block < blocks) barrier_wait(at.k_here(block % STAGES), block / STAGES % 2);
    };

    Scores scores;
    Weights weights;
    Output out;
    Softmax rows;
    float shrink[2];
    clear(out);
    rows.begin();
    barrier_wait(at.q_here(), 0);
    barrier_wait(at.k_here(0), 0);
    start_scores(scores, q, at.k(0));
    wgmma_wait<0>();
    settle(scores);
    release(at.k_free(0));
    if (is_masked(first + row, 0, BLOCK_K, p.length)) hide(scores, first + row, 0, p.length);
    rows.soften(scores, shrink, p.scale_log2);
    round(weights, scores);
    wait_for_keys(1);
#pragma unroll 1
    for (int block = 1; block < blocks; block++) {
        const int stage = block % STAGES, before = (block - 1) % STAGES;
        start_scores(scores, q, at.k(stage));
        barrier_wait(at.v_here(before), (block - 1) / STAGES % 2);
        start_output(out, weights, at.v(before));
        wgmma_wait<1>();
        settle(scores);
        release(at.k_free(stage));
        if (is_masked(first + row, block * BLOCK_K, BLOCK_K, p.length))
            hide(scores, first + row, block * BLOCK_K, p.length);
        rows.soften(scores, shrink, p.scale_log2);
        settle(scores);
        // The wait for the next K stands here and not before its use: the softmax is then finished beside the product
        // under way, since the assembler moves no arithmetic past a branch.
        wait_for_keys(block + 1);
        wgmma_wait<0>();
        settle(out);
        release(at.v_free(before));
        shrink_rows(out, shrink);
        round(weights, scores);
    }
    barrier_wait(at.v_here((blocks - 1) % STAGES), (blocks - 1) / STAGES % 2);
    start_output(out, weights, at.v((blocks - 1) % STAGES));
    wgmma_wait<0>();
    settle(out);

    float inverse[2];
    rows.finish(inverse, p.logsumexp + static_cast<long long>(block_y()) * p.length, first + row, p.length, p.scale_log2);
    group_barrier(group);  // the group's products no longer read its queries
    write_rows<BLOCK_Q>(p.out + head_offset(block_y(), p.length), first, p.length, at.q, row, out, inverse[0], inverse[1]);
}
