// Threads that go through a pass together, and the memory they share.
//
// A token of a small model is some 150 short phases of 10 to 30 microseconds, so a phase ends at a barrier of one cache line
// that is spun on; a parallel region for each would cost as much as some phases do. Who waits long gives its core away, so
// that more threads than cores are slow and not stuck.
#pragma once

#include <sched.h>
#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>

namespace lanes {

class Barrier {
  public:
    void wait(int threads) {
        if (threads == 1) return;
        const int round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
            if (spins < PATIENCE) relax();
            else sched_yield();
    }

  private:
    static constexpr int PATIENCE = 4000;
    static void relax() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield" ::: "memory");
#endif
    }
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> round_{0};
};

// Zeroed pages, taken from the system when they are written; large ones in huge pages, where there are such.
class Memory {
  public:
    explicit Memory(size_t bytes, bool huge = false) : bytes_(bytes + HUGE) {
        base_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base_ == MAP_FAILED) throw std::bad_alloc();
        data_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(base_) + HUGE - 1) / HUGE * HUGE);
#if defined(MADV_HUGEPAGE)
        if (huge) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { munmap(base_, bytes_); }
    uint8_t* bytes() const { return data_; }
    float* floats() const { return reinterpret_cast<float*>(data_); }

  private:
    static constexpr size_t HUGE = size_t(2) << 20;
    size_t bytes_;
    void* base_;
    uint8_t* data_;
};

// The part of ``count`` that thread ``me`` of ``threads`` does.
struct Share {
    int first, last;
    Share(int first, int last) : first(first), last(last) {}
    Share(int count, int me, int threads)
        : first(int(int64_t(count) * me / threads)), last(int(int64_t(count) * (me + 1) / threads)) {}
};

}  // namespace lanes
