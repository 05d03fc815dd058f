// Tiles in shared memory, fragments in registers, and the problem the kernels are given.
//
// A tile is rows of D elements, cut into panels of 64 columns (128 bytes, all banks once). Within a panel the 16-byte
// chunk c of row r lies at chunk c ^ (r % 8): eight rows of one logical chunk, what ldmatrix reads at a time, fall on
// eight different chunks, and so do the eight chunks of one row that eight threads of a copy write.
// Walking 16 columns further flips bits of the address and adds nothing: tiles begin at multiples of 1024 bytes.
#pragma once

#include <device.cuh>

constexpr int D = ARCHBENCH_HEAD_DIM;
constexpr bool CAUSAL = ARCHBENCH_CAUSAL;
constexpr int PANELS = D / 64;
constexpr float INFINITE = __builtin_huge_valf();

// One call. q, out, dout, dq are [B, H, T, D]; k, v, dk, dv are [B, G, T, D]; logsumexp (of base 2) and row_sum are
// [B, H, T]. All contiguous.
struct Problem {
    const Bits16 *q, *k, *v;
    Bits16* out;
    float* logsumexp;
    const Bits16* dout;
    float* row_sum;
    Bits16 *dq, *dk, *dv;
    int shared;        // query heads per KV head
    int length;        // T
    float scale;       // 1 / sqrt(D)
    float scale_log2;  // log2(e) / sqrt(D): scores are held in units of log 2
};

template <int ROWS>
constexpr int TILE_BYTES = ROWS * D * 2;

INLINE int lane_index() { return thread_index() % 32; }
INLINE int warp_index() { return thread_index() / 32; }
INLINE long long head_offset(long long head, int length) { return head * length * D; }

// Address of a chunk of 8 columns.
template <int ROWS>
INLINE Bits32 chunk_address(Bits32 tile, int row, int chunk) {
    return tile + (chunk / 8 * ROWS + row) * 128 + ((chunk ^ row) % 8) * 16;
}

// Start to copy ROWS rows from `first` on; rows at or beyond `length` become zero.
template <int ROWS, int THREADS>
INLINE void fetch(Bits32 tile, const Bits16* head, int first, int length) {
    constexpr int CHUNKS = D / 8;
    const int row = thread_index() / CHUNKS;
    const int chunk = thread_index() % CHUNKS;
    const Bits32 to = chunk_address<ROWS>(tile, row, chunk);
    constexpr int STRIDE = THREADS / CHUNKS;  // a multiple of 8: the swizzle of a thread's rows is the same
    static_assert(STRIDE % 8 == 0);
    const int from_row = renewed(first + row);  // or each of its addresses becomes a register of a loop around it
#pragma unroll
    for (int i = 0; i < ROWS / STRIDE; i++) {
        const int at = from_row + i * STRIDE;
        const bool exists = at < length;
        const unsigned from = (exists ? at : 0) * D + chunk * 8;  // a head has fewer than 2**31 elements
        copy_async(to + i * STRIDE * 128, head + from, exists);
    }
}

// What a lane adds to a tile's address to load, with ldmatrix, 16 x 16 elements as
// - the left operand of mma, or, transposed, its right operand from rows along the sum:
INLINE Bits32 lane_left() { return lane_index() % 16 * 128 + ((lane_index() / 16) ^ (lane_index() % 8)) * 16; }
// - the right operand from rows along the output: elements [0], [1] are its columns 0 to 7, [2], [3] columns 8 to 15.
INLINE Bits32 lane_right() {
    const int row = lane_index() % 8 + lane_index() / 16 * 8;
    return row * 128 + ((lane_index() / 8 % 2) ^ (lane_index() % 8)) * 16;
}

// From such an address to the one `row` rows (a multiple of 16) and `step` times 16 columns further.
template <int ROWS>
INLINE Bits32 walk(Bits32 address, int row, int step) {
    return (address ^ (step % 4 * 32)) + (step / 4 * ROWS + row) * 128;
}

// The sums of 16 x 8 of two neighbouring products, rounded, as the left operand of the next one.
INLINE void as_left(Bits32 (&left)[4], const float (&low)[4], const float (&high)[4]) {
    left[0] = pack(low[0], low[1]);
    left[1] = pack(low[2], low[3]);
    left[2] = pack(high[0], high[1]);
    left[3] = pack(high[2], high[3]);
}

template <int N>
INLINE void clear(float (&sums)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] = 0.0f;
}

// Write 16 rows of a warp, times `factor` of the row and the row 8 below, through its own rows of a tile of shared
// memory, so that what leaves the chip leaves in whole lines. Rows at or beyond `length` are not written.
template <int ROWS>
INLINE void write_rows(Bits16* head, int first, int length, Bits32 tile, int row, const float (&sums)[D / 8][4],
                       float factor_upper, float factor_lower) {
    const int lane = lane_index();
    const int upper = row + lane / 4;
    warp_barrier();  // other lanes may have read what this one overwrites
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        const Bits32 at = chunk_address<ROWS>(tile, upper, n) + lane % 4 * 4;
        store_shared(at, pack(sums[n][0] * factor_upper, sums[n][1] * factor_upper));
        store_shared(at + 8 * 128, pack(sums[n][2] * factor_lower, sums[n][3] * factor_lower));
    }
    warp_barrier();
    constexpr int CHUNKS = D / 8;
#pragma unroll
    for (int i = 0; i < 16 * CHUNKS / 32; i++) {
        const int at = row + lane / CHUNKS + i * (32 / CHUNKS);
        if (first + at < length)
            store_global(head + static_cast<long long>(first + at) * D + lane % CHUNKS * 8,
                         load_shared(chunk_address<ROWS>(tile, at, lane % CHUNKS)));
    }
}
