// The machine as the kernels see it: every instruction that is not plain C++ is a function here.
//
// Tests put another file of this name first, in which a thread is a fiber and these functions do on a CPU what PTX
// defines; the kernels are the same text in both. An address of shared memory is a byte number, as PTX has it. Elements
// are 16 bits wide and travel in pairs, so no header of CUDA's is needed but those the compiler includes by itself.
//
// Source: PTX ISA, sections on ldmatrix, mma.sync.m16n8k16, cp.async, ex2.approx
#pragma once

using Bits16 = unsigned short;
using Bits32 = unsigned;

#define KERNEL extern "C" __global__
#define INLINE __device__ __forceinline__

INLINE int thread_index() { return threadIdx.x; }
INLINE int block_x() { return blockIdx.x; }
INLINE int block_y() { return blockIdx.y; }
INLINE int blocks_x() { return gridDim.x; }

// Where the block's dynamic shared memory begins, at a multiple of 1024 bytes: it is all there is.
INLINE Bits32 shared_memory() {
    extern __shared__ __align__(1024) char memory[];
    return static_cast<Bits32>(__cvta_generic_to_shared(memory));
}

INLINE void block_barrier() { __syncthreads(); }
INLINE void warp_barrier() { __syncwarp(); }
INLINE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// The same number, of which the compiler knows nothing: what follows from it is computed where it is used, and holds no
// register around a loop.
INLINE Bits32 renewed(Bits32 value) {
    asm volatile("" : "+r"(value));
    return value;
}

INLINE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
INLINE float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two numbers rounded to 16 bits each, the first in the low half.
INLINE Bits32 pack(float low, float high) {
    Bits32 pair;
#if ARCHBENCH_BF16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
    return pair;
}
INLINE void unpack(Bits32 pair, float& low, float& high) {
#if ARCHBENCH_BF16
    low = __uint_as_float(pair << 16);
    high = __uint_as_float(pair & 0xffff0000u);
#else
    asm("{.reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
        : "=f"(low), "=f"(high) : "r"(pair));
#endif
}

// Four 8x8 matrices; lane 8 i + r names the 16 bytes of row r of matrix i. Each lane receives two elements of each.
INLINE void ldmatrix(Bits32 (&matrices)[4], Bits32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address) : "memory");
}
INLINE void ldmatrix_transposed(Bits32 (&matrices)[4], Bits32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address) : "memory");
}

// sum[16 x 8] += a[16 x 16] b[16 x 8], the warp's.
INLINE void mma(float (&sum)[4], const Bits32 (&a)[4], Bits32 b_low, Bits32 b_high) {
#if ARCHBENCH_BF16
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
#endif
}

// Start copying 16 bytes to shared memory; zeros where the source does not exist (it is then not read).
INLINE void copy_async(Bits32 to, const void* from, bool exists) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(to), "l"(__cvta_generic_to_global(from)), "r"(exists ? 16 : 0) : "memory");
}
// The same for one number.
INLINE void copy_number_async(Bits32 to, const float* from, bool exists) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"(to), "l"(__cvta_generic_to_global(from)), "r"(exists ? 4 : 0) : "memory");
}
INLINE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all but the last Pending groups this thread committed have arrived.
template <int Pending>
INLINE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(Pending) : "memory");
}

struct Bits128 { Bits32 part[4]; };

INLINE void store_shared(Bits32 address, Bits32 value) {
    asm volatile("st.shared.b32 [%0], %1;" :: "r"(address), "r"(value) : "memory");
}
INLINE Bits128 load_shared(Bits32 address) {
    Bits128 value;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.part[0]), "=r"(value.part[1]), "=r"(value.part[2]), "=r"(value.part[3])
                 : "r"(address) : "memory");
    return value;
}

INLINE void load_shared(Bits32 address, float& first, float& second) {
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(first), "=f"(second) : "r"(address) : "memory");
}

INLINE float load_float(const float* from) { return __ldg(from); }
INLINE void store_float(float* to, float value) { *to = value; }
INLINE Bits128 load_global(const void* from) {
    const uint4 value = __ldg(static_cast<const uint4*>(from));
    return {{value.x, value.y, value.z, value.w}};
}
INLINE void store_global(void* to, Bits128 value) {
    *static_cast<uint4*>(to) = make_uint4(value.part[0], value.part[1], value.part[2], value.part[3]);
}
