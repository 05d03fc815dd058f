// Backward: the weights are formed again from the logsumexp, once by blocks of keys for dK and dV, once by blocks of
// queries for dQ. Nothing is added up atomically, so results do not depend on the order of execution.
//
// Both kernels keep a block of rows (keys, or queries) on the chip and stream the other side past it, two tiles ahead
// of use. A warp owns its rows: scores and their gradients stay in its registers, where the sums of one product have
// the layout of the next one's left operand. For dK and dV tiles are therefore transposed, [keys, queries].
// The warp's own rows, left operands of two products, are read from shared memory again for each streamed tile of 32.
//
// Source: Dao 2023, arXiv:2307.08691, algorithm 2
#include <tiles.cuh>

namespace {

constexpr int WARPS = D == 64 ? 4 : 8;
constexpr int THREADS = WARPS * 32;
constexpr int TALL = D == 64 ? 2 : 1;        // times 16 rows a warp owns
constexpr int KEPT = WARPS * TALL * 16;      // rows that stay
constexpr int STREAMED = D == 64 ? 64 : 32;  // rows of a tile that passes
constexpr int CHUNK = 32;                    // columns of scores in registers at a time
constexpr int STEPS_D = D / 16;
constexpr int BLOCKS = D == 64 ? 2 : 1;      // that share a multiprocessor

using Scores = float[CHUNK / 8][4];
using Sums = float[D / 8][4];

// What shared memory holds: two tiles that stay, then twice two that pass, then numbers of their rows.
struct Layout {
    Bits32 kept_a, kept_b, streamed;
    INLINE Layout() : kept_a(shared_memory()) {
        kept_b = kept_a + TILE_BYTES<KEPT>;
        streamed = kept_b + TILE_BYTES<KEPT>;
    }
    INLINE Bits32 a(int stage) const { return streamed + stage * 2 * TILE_BYTES<STREAMED>; }
    INLINE Bits32 b(int stage) const { return a(stage) + TILE_BYTES<STREAMED>; }
    INLINE Bits32 numbers(int stage) const { return a(2) + stage * 2 * STREAMED * 4; }
};

// scores[t] = left rows (kept) times right rows (streamed), both along D.
INLINE void multiply(Scores (&scores)[TALL], Bits32 left, Bits32 right) {
#pragma unroll
    for (int t = 0; t < TALL; t++) clear(scores[t]);
#pragma unroll
    for (int step = 0; step < STEPS_D; step++) {
        Bits32 a[TALL][4];
#pragma unroll
        for (int t = 0; t < TALL; t++) ldmatrix(a[t], walk<KEPT>(left, t * 16, step));
#pragma unroll
        for (int n = 0; n < CHUNK / 16; n++) {
            Bits32 b[4];
            ldmatrix(b, walk<STREAMED>(right, n * 16, step));
#pragma unroll
            for (int t = 0; t < TALL; t++) {
                mma(scores[t][n * 2], a[t], b[0], b[1]);
                mma(scores[t][n * 2 + 1], a[t], b[2], b[3]);
            }
        }
    }
}

// sums[t] += scores[t], rounded, times right rows (streamed).
INLINE void accumulate(Sums (&sums)[TALL], const Scores (&scores)[TALL], Bits32 right) {
#pragma unroll
    for (int step = 0; step < CHUNK / 16; step++) {
        Bits32 a[TALL][4];
#pragma unroll
        for (int t = 0; t < TALL; t++) as_left(a[t], scores[t][step * 2], scores[t][step * 2 + 1]);
#pragma unroll
        for (int n = 0; n < STEPS_D; n++) {
            Bits32 b[4];
            ldmatrix_transposed(b, walk<STREAMED>(right, step * 16, n));
#pragma unroll
            for (int t = 0; t < TALL; t++) {
                mma(sums[t][n * 2], a[t], b[0], b[1]);
                mma(sums[t][n * 2 + 1], a[t], b[2], b[3]);
            }
        }
    }
}

}  // namespace

// rowsum(dout * out). Eight threads a row, 32 rows a block. Grid (blocks of queries, B * H).
KERNEL void __launch_bounds__(256) row_sums(const __grid_constant__ Problem p) {
    const int row = block_x() * 32 + thread_index() / 8;
    const long long head = block_y();
    float sum = 0.0f;
    if (row < p.length) {
        const long long from = head_offset(head, p.length) + static_cast<long long>(row) * D + thread_index() % 8 * 8;
#pragma unroll
        for (int panel = 0; panel < PANELS; panel++) {
            const Bits128 out = load_global(p.out + from + panel * 64);
            const Bits128 dout = load_global(p.dout + from + panel * 64);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float a, b, c, d;
                unpack(out.part[i], a, b);
                unpack(dout.part[i], c, d);
                sum += a * c + b * d;
            }
        }
    }
#pragma unroll
    for (int mask = 1; mask < 8; mask *= 2) sum += shuffle_xor(sum, mask);
    if (thread_index() % 8 == 0 && row < p.length) store_float(p.row_sum + head * p.length + row, sum);
}

// dK and dV of a block of keys, over all queries of all heads that share them. Grid (blocks of keys, B * G).
KERNEL void __launch_bounds__(THREADS, BLOCKS) backward_keys(const __grid_constant__ Problem p) {
    const Layout at;
    // Under a causal mask the first keys have most queries: they start first as it is.
    const int first = block_x() * KEPT;
    const int row = warp_index() * TALL * 16;
    const int kv_head = block_y();
    const int begin = CAUSAL ? first / STREAMED * STREAMED : 0;
    const int tiles = (p.length - begin + STREAMED - 1) / STREAMED;  // of queries, for each head
    const int visits = tiles * p.shared;

    fetch<KEPT, THREADS>(at.kept_a, p.k + head_offset(kv_head, p.length), first, p.length);
    fetch<KEPT, THREADS>(at.kept_b, p.v + head_offset(kv_head, p.length), first, p.length);
    // The next visit that is not yet under way.
    int next_head = kv_head * p.shared;
    int next_start = begin;
    const auto fetch_next = [&](int stage) {
        fetch<STREAMED, THREADS>(at.a(stage), p.q + head_offset(next_head, p.length), next_start, p.length);
        fetch<STREAMED, THREADS>(at.b(stage), p.dout + head_offset(next_head, p.length), next_start, p.length);
        // Zeros for a query that does not exist: its weights are then 1, but they meet zeros in dout and row_sum.
        const int query = next_start + thread_index() % STREAMED;
        if (thread_index() < 2 * STREAMED) {
            const float* numbers = thread_index() < STREAMED ? p.logsumexp : p.row_sum;
            const bool exists = query < p.length;
            copy_number_async(at.numbers(stage) + thread_index() * 4,
                              numbers + static_cast<long long>(next_head) * p.length + (exists ? query : 0), exists);
        }
        next_start += STREAMED;
        if (next_start >= p.length) next_start = begin, next_head++;
    };
    fetch_next(0);
    copy_commit();

    Sums dk[TALL], dv[TALL];
#pragma unroll
    for (int t = 0; t < TALL; t++) clear(dk[t]), clear(dv[t]);
    int start = begin;
    for (int visit = 0; visit < visits; visit++) {
        copy_wait<0>();
        block_barrier();  // this visit's tiles are there, and nobody reads the last one's any more
        if (visit + 1 < visits) fetch_next((visit + 1) % 2);
        copy_commit();
#pragma unroll 1
        for (int chunk = 0; chunk < STREAMED; chunk += CHUNK) {
            const int first_query = start + chunk;
            if (first_query >= p.length || (CAUSAL && first_query + CHUNK <= first + row)) continue;
            const Bits32 q_tile = at.a(visit % 2) + chunk * 128, dout_tile = at.b(visit % 2) + chunk * 128;
            Scores weights[TALL], dscores[TALL];
            multiply(weights, at.kept_a + row * 128 + lane_left(), q_tile + lane_right());
            multiply(dscores, at.kept_b + row * 128 + lane_left(), dout_tile + lane_right());
            const int ahead = first + row + lane_index() / 4 - first_query - lane_index() % 4 * 2;  // the key, of the query
            const bool diagonal = CAUSAL && first_query < first + row + TALL * 16 - 1;
#pragma unroll
            for (int n = 0; n < CHUNK / 8; n++) {
                const int column = n * 8 + lane_index() % 4 * 2;
                float logsumexp[2], row_sum[2];
                load_shared(at.numbers(visit % 2) + (chunk + column) * 4, logsumexp[0], logsumexp[1]);
                load_shared(at.numbers(visit % 2) + (STREAMED + chunk + column) * 4, row_sum[0], row_sum[1]);
#pragma unroll
                for (int t = 0; t < TALL; t++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const int behind = t * 16 + i / 2 * 8 - n * 8 - i % 2;  // as far further
                        float weight = exp2_fast(weights[t][n][i] * p.scale_log2 - logsumexp[i % 2]);
                        if (diagonal && ahead + behind > 0) weight = 0.0f;
                        weights[t][n][i] = weight;
                        dscores[t][n][i] = weight * (dscores[t][n][i] - row_sum[i % 2]);
                    }
            }
            accumulate(dv, weights, dout_tile + lane_left());
            accumulate(dk, dscores, q_tile + lane_left());
        }
        start += STREAMED;
        if (start >= p.length) start = begin;
    }
    // Every warp reads its own rows of the tiles that stay, and no others.
#pragma unroll
    for (int t = 0; t < TALL; t++) {
        write_rows<KEPT>(p.dk + head_offset(kv_head, p.length), first, p.length, at.kept_a, row + t * 16, dk[t], p.scale,
                         p.scale);
        write_rows<KEPT>(p.dv + head_offset(kv_head, p.length), first, p.length, at.kept_b, row + t * 16, dv[t], 1.0f,
                         1.0f);
    }
}

// dQ of a block of queries, over all keys they see. Grid (blocks of queries, B * H).
KERNEL void __launch_bounds__(THREADS, BLOCKS) backward_queries(const __grid_constant__ Problem p) {
    const Layout at;
    const int first = (blocks_x() - 1 - block_x()) * KEPT;  // the longest first, as in the forward
    const int row = warp_index() * TALL * 16;
    const long long head = block_y();
    const long long kv_head = head_offset(block_y() / p.shared, p.length);
    const int end = CAUSAL ? min(first + KEPT, p.length) : p.length;

    fetch<KEPT, THREADS>(at.kept_a, p.q + head_offset(head, p.length), first, p.length);
    fetch<KEPT, THREADS>(at.kept_b, p.dout + head_offset(head, p.length), first, p.length);
    const auto fetch_tiles = [&](int start, int stage) {
        fetch<STREAMED, THREADS>(at.a(stage), p.k + kv_head, start, p.length);
        fetch<STREAMED, THREADS>(at.b(stage), p.v + kv_head, start, p.length);
    };
    fetch_tiles(0, 0);
    copy_commit();

    float logsumexp[TALL][2], row_sum[TALL][2];
#pragma unroll
    for (int t = 0; t < TALL; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int query = first + row + t * 16 + half * 8 + lane_index() / 4;
            const bool exists = query < p.length;
            logsumexp[t][half] = exists ? load_float(p.logsumexp + head * p.length + query) : INFINITE;
            row_sum[t][half] = exists ? load_float(p.row_sum + head * p.length + query) : 0.0f;
        }
    Sums dq[TALL];
#pragma unroll
    for (int t = 0; t < TALL; t++) clear(dq[t]);
    for (int start = 0; start < end; start += STREAMED) {
        const int stage = start / STREAMED % 2;
        copy_wait<0>();
        block_barrier();
        if (start + STREAMED < end) fetch_tiles(start + STREAMED, 1 - stage);
        copy_commit();
#pragma unroll 1
        for (int chunk = 0; chunk < STREAMED; chunk += CHUNK) {
            const int first_key = start + chunk;
            const int seen = CAUSAL ? min(first + row + TALL * 16, p.length) : p.length;  // by the warp's last query
            if (first_key >= seen) continue;
            const Bits32 k_tile = at.a(stage) + chunk * 128, v_tile = at.b(stage) + chunk * 128;
            Scores weights[TALL], dscores[TALL];
            multiply(weights, at.kept_a + row * 128 + lane_left(), k_tile + lane_right());
            multiply(dscores, at.kept_b + row * 128 + lane_left(), v_tile + lane_right());
            const bool masked = first_key + CHUNK > (CAUSAL ? min(first + row + 1, p.length) : p.length);
#pragma unroll
            for (int t = 0; t < TALL; t++)
#pragma unroll
                for (int n = 0; n < CHUNK / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const int key = first_key + n * 8 + lane_index() % 4 * 2 + i % 2;
                        const int query = first + row + t * 16 + i / 2 * 8 + lane_index() / 4;
                        float weight = exp2_fast(weights[t][n][i] * p.scale_log2 - logsumexp[t][i / 2]);
                        if (masked && (key >= p.length || (CAUSAL && key > query))) weight = 0.0f;
                        dscores[t][n][i] = weight * (dscores[t][n][i] - row_sum[t][i / 2]);
                    }
            accumulate(dq, dscores, k_tile + lane_left());
        }
    }
#pragma unroll
    for (int t = 0; t < TALL; t++)
        write_rows<KEPT>(p.dq + head_offset(head, p.length), first, p.length, at.kept_a, row + t * 16, dq[t], p.scale,
                         p.scale);
}
