// What only Hopper (sm_90a) has: products of a whole warp group, copies of whole tiles, barriers that count bytes.
//
// A warp group is four warps, 128 threads. wgmma multiplies out of shared memory (the left operand may be in registers)
// and returns before it is done; the registers it reads or writes are not to be touched until the group has waited.
// The compiler does not know that: `settle` after the wait keeps it from using them earlier.
// Tests put another file of this name first, as they do with device.cuh.
//
// Source: PTX ISA, sections on wgmma.mma_async, cp.async.bulk.tensor, mbarrier and setmaxnreg
#pragma once

#include <device.cuh>

using Bits64 = unsigned long long;

// A tensor as the copy engine knows it; the driver fills it in.
struct alignas(128) TensorMap { Bits64 opaque[16]; };

INLINE void barrier_init(Bits32 barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals) : "memory");
}
// What was initialised is there for the copy engine, too.
INLINE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
INLINE void barrier_arrive(Bits32 barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
}
// Arrive, and have the phase wait for that many bytes of copies, too.
INLINE void barrier_expect(Bits32 barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes)
                 : "memory");
}
// Until the phase of this parity is over.
INLINE void barrier_wait(Bits32 barrier, int parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "AGAIN:\nmbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
        "@done bra DONE;\nbra AGAIN;\nDONE:\n}"
        :: "r"(barrier), "r"(parity) : "memory");
}

// Start copying the box of a tensor at (column, row, head) to shared memory; the barrier counts its bytes.
INLINE void copy_box(Bits32 to, const TensorMap& map, int column, int row, int head, Bits32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];"
        :: "r"(to), "l"(&map), "r"(column), "r"(row), "r"(head), "r"(barrier) : "memory");
}

// Only the four warps of a group; its number is at least 1.
INLINE void group_barrier(int group) { asm volatile("bar.sync %0, 128;" :: "r"(group) : "memory"); }

template <int Registers>
INLINE void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(Registers));
}
template <int Registers>
INLINE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(Registers));
}

INLINE void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
INLINE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the last Pending groups are done.
template <int Pending>
INLINE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(Pending) : "memory");
}
template <int N>
INLINE void settle(float (&sums)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) asm volatile("" : "+f"(sums[n][i]) :: "memory");
}

#if ARCHBENCH_BF16
#define ARCHBENCH_TYPES ".f32.bf16.bf16 "
#else
#define ARCHBENCH_TYPES ".f32.f16.f16 "
#endif
#define SUMS_OF_8(s, n) "+f"(s[n][0]), "+f"(s[n][1]), "+f"(s[n][2]), "+f"(s[n][3])
#define SUMS_OF_64(s, n) \
    SUMS_OF_8(s, n), SUMS_OF_8(s, n + 1), SUMS_OF_8(s, n + 2), SUMS_OF_8(s, n + 3), SUMS_OF_8(s, n + 4), \
    SUMS_OF_8(s, n + 5), SUMS_OF_8(s, n + 6), SUMS_OF_8(s, n + 7)
#define NAMES_OF_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_OF_128 NAMES_OF_64 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// sums[64 x 128] = left[64 x 16] right[16 x 128] (+ sums where `add`), both operands in rows along the sum.
INLINE void wgmma(float (&sums)[16][4], Bits64 left, Bits64 right, bool add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16" ARCHBENCH_TYPES "{" NAMES_OF_128 "}, %64, %65, p, 1, 1, 0, 0;\n}"
                 : SUMS_OF_64(sums, 0), SUMS_OF_64(sums, 8) : "l"(left), "l"(right), "r"(int(add)));
}
// sums[64 x 64] or [64 x 128] += left right, the left operand in registers, the right in rows along the output.
INLINE void wgmma(float (&sums)[8][4], const Bits32 (&left)[4], Bits64 right) {
    asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16" ARCHBENCH_TYPES
                 "{" NAMES_OF_64 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}"
                 : SUMS_OF_64(sums, 0)
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right));
}
INLINE void wgmma(float (&sums)[16][4], const Bits32 (&left)[4], Bits64 right) {
    asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16" ARCHBENCH_TYPES
                 "{" NAMES_OF_128 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
                 : SUMS_OF_64(sums, 0), SUMS_OF_64(sums, 8)
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right));
}
