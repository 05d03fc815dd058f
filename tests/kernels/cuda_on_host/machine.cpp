// Fibers and their order: a thread of the block is a fiber with a stack of its own, and gives way where it waits.
//
// An instruction of the whole warp is done when all 32 lanes have come to it, by the last one; lanes that come to
// different instructions, or leave while others wait, end the launch with a message. Which warp runs next is up to the seed.
#include "machine.hpp"

#include <ucontext.h>

#include <memory>
#include <numeric>
#include <random>

namespace machine {

Place here;
std::vector<Warp> warps;
unsigned block_epoch;

namespace {

constexpr size_t STACK_BYTES = 128 * 1024;
constexpr long PATIENCE = 4000000;  // turns in which nothing came further before it is called a deadlock

struct Fiber {
    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
    ucontext_t start;
    jmp_buf context;
    bool started = false, done = false;
};

std::vector<std::unique_ptr<Fiber>> fibers;
Launch launch;
Place block;
jmp_buf scheduler;
std::mt19937 chance;
std::string message;
long idle;  // turns since something came further

enum Said { NOTHING, YIELDED, FAILED };

void begin() {
    launch.kernel();
    Warp& warp = warps[here.thread / LANES];
    fibers[here.thread]->done = true;
    warp.alive--;
    if (warp.arrived) fail(std::string("a lane left while others wait in ") + warp.what);
    idle = 0;
    longjmp(scheduler, YIELDED);
}

// Go on with a fiber; where it stands is kept by whoever calls this.
[[noreturn]] void go_on(int thread) {
    here = block;
    here.thread = thread;
    Fiber& fiber = *fibers[thread];
    if (fiber.started) longjmp(fiber.context, 1);
    fiber.started = true;
    setcontext(&fiber.start);
    std::abort();
}

int next_lane(int thread) {
    const int warp = thread / LANES * LANES;
    for (int i = 1; i < LANES; i++) {
        const int other = warp + (thread + i) % LANES;
        if (!fibers[other]->done) return other;
    }
    return thread;
}

// The rest of give_way, whose frame must hold nothing that changes after its _setjmp.
[[noreturn, gnu::noinline]] void leave(bool elsewhere) {
    const int other = next_lane(here.thread);
    if (!elsewhere && other != here.thread) go_on(other);
    warps[here.thread / LANES].resume = other % LANES;
    longjmp(scheduler, YIELDED);
}

bool blocked(const Warp& warp) { return !warp.alive || warp.at_barrier == warp.alive; }

// The last one comes last, or it could wait for the others forever.
int next_warp(int last) {
    const int count = static_cast<int>(warps.size());
    if (launch.seed > 1) last = static_cast<int>(chance() % count);
    const int step = launch.seed == 1 ? count - 1 : 1;
    for (int i = 1; i <= count; i++) {
        const int warp = (last + i * step) % count;
        if (!blocked(warps[warp])) return warp;
    }
    return -1;
}

void run_block() {
    warps.assign(launch.threads / LANES, Warp());
    block_epoch = 0;
    idle = 0;
    for (auto& fiber : fibers) {
        fiber->started = fiber->done = false;
        getcontext(&fiber->start);
        fiber->start.uc_stack.ss_sp = fiber->stack.get();
        fiber->start.uc_stack.ss_size = STACK_BYTES;
        fiber->start.uc_link = nullptr;
        makecontext(&fiber->start, begin, 0);
    }
    volatile int warp = launch.seed == 1 ? 0 : static_cast<int>(warps.size()) - 1;
    if (_setjmp(scheduler) == FAILED) return;
    const int next = next_warp(warp);
    if (next < 0) {
        for (const Warp& each : warps)
            if (each.alive) message = "some threads left, others wait for them at a block barrier";
        return;
    }
    warp = next;
    const int lane = next * LANES + warps[next].resume;
    go_on(fibers[lane]->done ? next_lane(lane) : lane);
}

}  // namespace

void fail(const std::string& why) {
    message = why + " (block " + std::to_string(here.block_x) + ", " + std::to_string(here.block_y) + ", thread " +
              std::to_string(here.thread) + ")";
    longjmp(scheduler, FAILED);
}

bool sometimes() { return launch.seed > 1 && chance() % 16 == 0; }

int pick(int choices) { return launch.seed > 1 ? static_cast<int>(chance() % choices) : 0; }

void give_way(bool elsewhere) {
    if (++idle > PATIENCE) fail("a deadlock");
    if (!_setjmp(fibers[here.thread]->context)) leave(elsewhere);
}

void meet(const char* what, const void* mine, void (*together)(Warp&)) {
    Warp& warp = warps[here.thread / LANES];
    if (warp.arrived && std::strcmp(warp.what, what))
        fail(std::string("lanes diverge: ") + warp.what + " and " + what);
    if (warp.alive < LANES) fail(std::string("a lane has left before ") + what);
    warp.what = what;
    warp.given[here.thread % LANES] = mine;
    idle = 0;
    if (++warp.arrived == LANES) {
        together(warp);
        warp.arrived = 0;
        warp.done++;
        if (sometimes()) give_way(true);
        return;
    }
    for (const unsigned before = warp.done; warp.done == before;) give_way(warp.at_barrier > 0);
}

void block_barrier() {
    Warp& warp = warps[here.thread / LANES];
    if (warp.arrived) fail(std::string("lanes diverge: a block barrier and ") + warp.what);
    warp.at_barrier++;
    idle = 0;
    const unsigned before = block_epoch;
    bool all = true;
    for (const Warp& each : warps) all = all && each.at_barrier == LANES;
    if (all) {
        for (Warp& each : warps) each.at_barrier = 0;
        block_epoch++;
        give_way(true);  // whoever is first after a barrier is up to the order, too
        return;
    }
    while (block_epoch == before) give_way(warp.at_barrier == LANES);
}

std::string run(const Launch& given) {
    launch = given;
    chance.seed(launch.seed);
    message.clear();
    while (static_cast<int>(fibers.size()) < launch.threads) fibers.push_back(std::make_unique<Fiber>());
    fibers.resize(launch.threads);
    std::vector<int> order(launch.blocks_x * launch.blocks_y);
    std::iota(order.begin(), order.end(), 0);
    if (launch.seed > 1) std::shuffle(order.begin(), order.end(), chance);
    for (const int at : order) {
        block = {0, at % launch.blocks_x, at / launch.blocks_x, launch.blocks_x};
        reset_memory(launch.shared_bytes, launch.threads);
        reset_hopper(launch.threads);
        run_block();
        if (message.empty()) message = memory_leftovers();
        if (message.empty()) message = hopper_leftovers();
        if (!message.empty()) break;
    }
    return message;
}

}  // namespace machine
