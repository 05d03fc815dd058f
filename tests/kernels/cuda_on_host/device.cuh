// The machine of the kernels on a CPU, in place of their own device.cuh: a thread is a fiber, and an instruction does what
// PTX defines, lane by lane. machine.cpp holds the instructions, their checks and the order in which fibers run.
#pragma once

#include <cmath>
#include <algorithm>
#include <cstring>

using Bits16 = unsigned short;
using Bits32 = unsigned;
using std::min;
using std::max;

struct Bits128 { Bits32 part[4]; };

#define KERNEL extern "C"
#define INLINE inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace machine {

struct Place { int thread, block_x, block_y, blocks_x; };
extern Place here;  // of the fiber that runs

void block_barrier();
void warp_barrier();
float shuffle_xor(float value, int mask);
void ldmatrix(Bits32 (&matrices)[4], Bits32 address, bool transposed);
void mma(float (&sum)[4], const Bits32 (&a)[4], Bits32 b_low, Bits32 b_high, bool bf16);
void copy_async(Bits32 to, const void* from, int bytes, bool exists);
void copy_commit();
void copy_wait(int pending);
void store_shared(Bits32 address, const void* from, int bytes);
void load_shared(Bits32 address, void* to, int bytes);
const void* readable(const void* from, int bytes);
void* writable(void* to, int bytes);
float widened(Bits16 bits, bool bf16);
Bits16 rounded(float number, bool bf16);

}  // namespace machine

INLINE int thread_index() { return machine::here.thread; }
INLINE int block_x() { return machine::here.block_x; }
INLINE int block_y() { return machine::here.block_y; }
INLINE int blocks_x() { return machine::here.blocks_x; }
INLINE Bits32 shared_memory() { return 1024; }  // never 0, where a forgotten base would go unseen
INLINE Bits32 renewed(Bits32 value) { return value; }
INLINE float exp2_fast(float x) { return std::exp2(x); }
INLINE float log2_fast(float x) { return std::log2(x); }

INLINE Bits32 pack(float low, float high) {
    return machine::rounded(low, ARCHBENCH_BF16) | Bits32(machine::rounded(high, ARCHBENCH_BF16)) << 16;
}
INLINE void unpack(Bits32 pair, float& low, float& high) {
    low = machine::widened(pair & 0xffff, ARCHBENCH_BF16);
    high = machine::widened(pair >> 16, ARCHBENCH_BF16);
}

INLINE void block_barrier() { machine::block_barrier(); }
INLINE void warp_barrier() { machine::warp_barrier(); }
INLINE float shuffle_xor(float value, int mask) { return machine::shuffle_xor(value, mask); }
INLINE void ldmatrix(Bits32 (&matrices)[4], Bits32 address) { machine::ldmatrix(matrices, address, false); }
INLINE void ldmatrix_transposed(Bits32 (&matrices)[4], Bits32 address) { machine::ldmatrix(matrices, address, true); }
INLINE void mma(float (&sum)[4], const Bits32 (&a)[4], Bits32 b_low, Bits32 b_high) {
    machine::mma(sum, a, b_low, b_high, ARCHBENCH_BF16);
}
INLINE void copy_async(Bits32 to, const void* from, bool exists) { machine::copy_async(to, from, 16, exists); }
INLINE void copy_number_async(Bits32 to, const float* from, bool exists) { machine::copy_async(to, from, 4, exists); }
INLINE void copy_commit() { machine::copy_commit(); }
template <int Pending>
INLINE void copy_wait() { machine::copy_wait(Pending); }

INLINE void store_shared(Bits32 address, Bits32 value) { machine::store_shared(address, &value, 4); }
INLINE Bits128 load_shared(Bits32 address) {
    Bits128 value;
    machine::load_shared(address, &value, 16);
    return value;
}
INLINE void load_shared(Bits32 address, float& first, float& second) {
    float pair[2];
    machine::load_shared(address, pair, 8);
    first = pair[0], second = pair[1];
}
INLINE float load_float(const float* from) { return *static_cast<const float*>(machine::readable(from, 4)); }
INLINE void store_float(float* to, float value) { *static_cast<float*>(machine::writable(to, 4)) = value; }
INLINE Bits128 load_global(const void* from) { return *static_cast<const Bits128*>(machine::readable(from, 16)); }
INLINE void store_global(void* to, Bits128 value) { *static_cast<Bits128*>(machine::writable(to, 16)) = value; }
