// What only Hopper has, on a CPU, in place of the kernels' own hopper.cuh.
#pragma once

#include <device.cuh>

using Bits64 = unsigned long long;

struct alignas(128) TensorMap { Bits64 opaque[16]; };

namespace machine {

void barrier_init(Bits32 barrier, int arrivals);
void barrier_arrive(Bits32 barrier, int bytes);
void barrier_wait(Bits32 barrier, int parity);
void copy_box(Bits32 to, const TensorMap& map, int column, int row, int head, Bits32 barrier);
void group_barrier(int group);
void change_registers(int registers, bool more);
void wgmma(float (*sums)[4], int columns, const Bits32* left, Bits64 left_matrix, Bits64 right_matrix, bool add, bool bf16);
void wgmma_begin();
void wgmma_commit();
void wgmma_wait(int pending);

}  // namespace machine

INLINE void barrier_init(Bits32 barrier, int arrivals) { machine::barrier_init(barrier, arrivals); }
INLINE void barrier_init_fence() {}
INLINE void barrier_arrive(Bits32 barrier) { machine::barrier_arrive(barrier, 0); }
INLINE void barrier_expect(Bits32 barrier, int bytes) { machine::barrier_arrive(barrier, bytes); }
INLINE void barrier_wait(Bits32 barrier, int parity) { machine::barrier_wait(barrier, parity); }
INLINE void copy_box(Bits32 to, const TensorMap& map, int column, int row, int head, Bits32 barrier) {
    machine::copy_box(to, map, column, row, head, barrier);
}
INLINE void group_barrier(int group) { machine::group_barrier(group); }
template <int Registers>
INLINE void give_registers() { machine::change_registers(Registers, false); }
template <int Registers>
INLINE void take_registers() { machine::change_registers(Registers, true); }
INLINE void wgmma_begin() { machine::wgmma_begin(); }
INLINE void wgmma_commit() { machine::wgmma_commit(); }
template <int Pending>
INLINE void wgmma_wait() { machine::wgmma_wait(Pending); }
template <int N>
INLINE void settle(float (&)[N][4]) {}
INLINE void wgmma(float (&sums)[16][4], Bits64 left, Bits64 right, bool add) {
    machine::wgmma(sums, 128, nullptr, left, right, add, ARCHBENCH_BF16);
}
template <int N>
INLINE void wgmma(float (&sums)[N][4], const Bits32 (&left)[4], Bits64 right) {
    machine::wgmma(sums, N * 8, left, 0, right, true, ARCHBENCH_BF16);
}
