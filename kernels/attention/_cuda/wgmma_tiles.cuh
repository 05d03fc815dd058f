// Tiles as Hopper's copy engine writes them and wgmma reads them: those of tiles.cuh, whose layout is 128-byte swizzle.
//
// Source: PTX ISA, matrix descriptors of wgmma and their strides; CUDA driver API, tensor maps
#pragma once

#include <hopper.cuh>
#include <tiles.cuh>

// A problem with the tensors the copy engine reads: [heads, T, D], in boxes of 64 columns and a tile's rows.
struct MappedProblem {
    TensorMap q, k, v;
    Problem plain;
};

// Where wgmma finds 16 columns or rows of a tile: address, two strides, and the swizzle of 128 bytes, in units of 16.
// Rows along the sum: groups of 8 rows are 1024 bytes apart, the other stride is not used.
// Rows along the output: groups of 8 rows along the sum are 1024 bytes apart, panels of 64 columns `panel` bytes.
INLINE Bits64 matrix(Bits32 address, int panel) {
    return Bits64(address >> 4 & 0x3fff) | Bits64(panel >> 4) << 16 | Bits64(1024 >> 4) << 32 | Bits64(1) << 62;
}

template <int ROWS>
INLINE void fetch_tile(Bits32 to, const TensorMap& map, int row, long long head, Bits32 barrier) {
    barrier_expect(barrier, TILE_BYTES<ROWS>);
#pragma unroll
    for (int panel = 0; panel < PANELS; panel++)
        copy_box(to + panel * ROWS * 128, map, panel * 64, row, static_cast<int>(head), barrier);
}
