// What the parts of the machine share: fibers in warps in a block, and how a fiber waits or fails.
#pragma once

#include <csetjmp>
#include <functional>
#include <string>
#include <vector>

#ifndef ARCHBENCH_BF16  // the functions below serve both formats; each is told which
#define ARCHBENCH_BF16 0
#endif
#include "device.cuh"

namespace machine {

constexpr int LANES = 32;

struct Warp {
    int arrived = 0;         // lanes that wait in the operation under way
    const char* what = "";   // its name
    unsigned done = 0;       // operations completed
    unsigned barriers = 0;   // of them, those that order memory
    const void* given[LANES] = {};
    int alive = LANES;
    int at_barrier = 0;  // lanes that wait for the block
    int resume = 0;
};

extern std::vector<Warp> warps;
extern unsigned block_epoch;  // block barriers passed

// End the launch with a message.
[[noreturn]] void fail(const std::string& why);

// Meet the warp's other lanes. The last to come runs `together`, which finds every lane's `mine` in given[].
void meet(const char* what, const void* mine, void (*together)(Warp&));

// Let other fibers run: the warp's other lanes, or, where `elsewhere`, any.
void give_way(bool elsewhere);
bool sometimes();      // random, where the order is
int pick(int choices);  // the first, where the order is not random

using Entry = std::function<void()>;
struct Launch {
    Entry kernel;
    int blocks_x, blocks_y, threads, shared_bytes;
    unsigned seed;  // 0: warps in order, each as far as it gets; 1: the same from the last; others: at random
};
// Runs all blocks, one after the other; an empty string where nothing was wrong.
std::string run(const Launch& launch);

// memory.cpp
void load_shared_as(int thread, Bits32 address, void* to, int bytes);  // what a lane asked for, its warp loads
struct Range { const char* begin; const char* end; bool writable; };
extern std::vector<Range> ranges;
void reset_memory(int shared_bytes, int threads);
std::string memory_leftovers();  // what a block should not leave, or nothing
// A copy that no thread makes: its target is announced, and then arrives.
void expect_shared(Bits32 address, int bytes);
void arrive_shared(Bits32 address, const void* from, int bytes);
void peek_shared(Bits32 address, void* to, int bytes);  // by a product, which no thread makes either

// hopper.cpp
void reset_hopper(int threads);
std::string hopper_leftovers();

}  // namespace machine
