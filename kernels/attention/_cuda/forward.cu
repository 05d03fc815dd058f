// Forward: a block of queries stays on the chip, keys and values stream past it.
//
// Four warps own 32 queries each, so that every fragment of K and V read from shared memory feeds two products. K and V
// have one buffer each: V arrives while Q K^T is formed, the next K while the softmax and P V are. Two blocks share a
// multiprocessor and fill each other's gaps. Only the blocks that cross the diagonal or the end are masked.
//
// Source: Dao 2023, arXiv:2307.08691, algorithm 1
#include <softmax.cuh>

namespace {

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * 32;
constexpr int TALL = 2;  // times 16 queries per warp
constexpr int BLOCK_Q = WARPS * TALL * 16;
constexpr int BLOCK_K = D == 64 ? 64 : 32;  // what leaves no register spilled
constexpr int STEPS_D = D / 16;
constexpr bool Q_IN_REGISTERS = D == 64;  // with 128 columns there is no room beside the output

using Scores = float[BLOCK_K / 8][4];
using Output = float[D / 8][4];

}  // namespace

// Grid (blocks of queries, B * H).
KERNEL void __launch_bounds__(THREADS, 2) forward(const __grid_constant__ Problem p) {
    const Bits32 q_tile = shared_memory();
    const Bits32 k_tile = q_tile + TILE_BYTES<BLOCK_Q>;
    const Bits32 v_tile = k_tile + TILE_BYTES<BLOCK_K>;
    // Under a causal mask the last block has most to do: it starts first, so that none is left alone at the end.
    const int first = (blocks_x() - 1 - block_x()) * BLOCK_Q;
    const int head = block_y();
    const long long kv_head = head_offset(head / p.shared, p.length);  // H = G * shared: the batch comes out right
    const int end = CAUSAL ? min(first + BLOCK_Q, p.length) : p.length;
    const int row = warp_index() * TALL * 16;
    const Bits32 q_lane = q_tile + lane_left() + row * 128;
    const Bits32 k_lane = k_tile + lane_right();
    const Bits32 v_lane = v_tile + lane_left();

    fetch<BLOCK_Q, THREADS>(q_tile, p.q + head_offset(head, p.length), first, p.length);
    fetch<BLOCK_K, THREADS>(k_tile, p.k + kv_head, 0, p.length);
    copy_commit();

    Output out[TALL];
    Softmax rows[TALL];
#pragma unroll
    for (int t = 0; t < TALL; t++) clear(out[t]), rows[t].begin();
    Bits32 q_kept[TALL][Q_IN_REGISTERS ? STEPS_D : 1][4];

    for (int start = 0; start < end; start += BLOCK_K) {
        copy_wait<0>();
        block_barrier();  // K is there, and nobody reads the last V any more
        fetch<BLOCK_K, THREADS>(v_tile, p.v + kv_head, start, p.length);
        copy_commit();
        if (Q_IN_REGISTERS && start == 0)
#pragma unroll
            for (int t = 0; t < TALL; t++)
#pragma unroll
                for (int step = 0; step < STEPS_D; step++)
                    ldmatrix(q_kept[t][Q_IN_REGISTERS ? step : 0], walk<BLOCK_Q>(q_lane, t * 16, step));

        const Bits32 q_now = renewed(q_lane), k_now = renewed(k_lane);
        Scores scores[TALL];
        for (int t = 0; t < TALL; t++) clear(scores[t]);
#pragma unroll
        for (int step = 0; step < STEPS_D; step++) {
            if (!Q_IN_REGISTERS)
#pragma unroll
                for (int t = 0; t < TALL; t++) ldmatrix(q_kept[t][0], walk<BLOCK_Q>(q_now, t * 16, step));
#pragma unroll
            for (int n = 0; n < BLOCK_K / 16; n++) {
                Bits32 k[4];
                ldmatrix(k, walk<BLOCK_K>(k_now, n * 16, step));
#pragma unroll
                for (int t = 0; t < TALL; t++) {
                    const auto& q = q_kept[t][Q_IN_REGISTERS ? step : 0];
                    mma(scores[t][n * 2], q, k[0], k[1]);
                    mma(scores[t][n * 2 + 1], q, k[2], k[3]);
                }
            }
        }
        copy_wait<0>();
        block_barrier();  // V is there, and nobody reads this K any more
        if (start + BLOCK_K < end) fetch<BLOCK_K, THREADS>(k_tile, p.k + kv_head, start + BLOCK_K, p.length);
        copy_commit();

        Bits32 weights[TALL][BLOCK_K / 16][4];
        const bool masked = is_masked(first + row, start, BLOCK_K, p.length);
#pragma unroll
        for (int t = 0; t < TALL; t++) {
            if (masked) hide(scores[t], first + row + t * 16, start, p.length);
            float shrink[2];
            rows[t].soften(scores[t], shrink, p.scale_log2);
            shrink_rows(out[t], shrink);
#pragma unroll
            for (int step = 0; step < BLOCK_K / 16; step++)
                as_left(weights[t][step], scores[t][step * 2], scores[t][step * 2 + 1]);
        }
        const Bits32 v_now = renewed(v_lane);
#pragma unroll
        for (int step = 0; step < BLOCK_K / 16; step++) {
#pragma unroll
            for (int n = 0; n < STEPS_D; n++) {
                Bits32 v[4];
                ldmatrix_transposed(v, walk<BLOCK_K>(v_now, step * 16, n));
#pragma unroll
                for (int t = 0; t < TALL; t++) {
                    mma(out[t][n * 2], weights[t][step], v[0], v[1]);
                    mma(out[t][n * 2 + 1], weights[t][step], v[2], v[3]);
                }
            }
        }
    }

#pragma unroll
    for (int t = 0; t < TALL; t++) {
        float inverse[2];
        rows[t].finish(inverse, p.logsumexp + static_cast<long long>(head) * p.length, first + row + t * 16, p.length,
                       p.scale_log2);
        // Nobody else reads this warp's queries.
        write_rows<BLOCK_Q>(p.out + head_offset(head, p.length), first, p.length, q_tile, row + t * 16, out[t],
                            inverse[0], inverse[1]);
    }
}
