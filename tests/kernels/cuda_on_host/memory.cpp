// Shared and global memory, and what may be done to them.
//
// Shared memory starts as NaN. Every 4 bytes remember who touched them last: an access that another thread's earlier one
// conflicts with, and that no barrier separates from it, ends the launch. A copy under way may land at any time, so nobody
// may touch its target until the thread that started it has waited for it. Global memory is a list of tensors: an access
// outside of them, or a write to an input, ends the launch.
#include "machine.hpp"

#include <cstdint>

namespace machine {

std::vector<Range> ranges;

namespace {

constexpr Bits32 BASE = 1024;  // shared_memory() of device.cuh

// A moment of a warp: accesses of one moment are not ordered between its lanes, those of one epoch not between warps.
struct Stamp {
    int thread = -1;
    unsigned epoch = 0, barriers = 0;
};
struct Word {
    Stamp write, read;
    bool many = false;     // several warps read in read.epoch
    bool several = false;  // several lanes of the warp did since its last barrier
    bool pending = false;
};
struct Copy { Bits32 to; const void* from; int bytes; bool exists; };
struct Copies {
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
};

std::vector<unsigned char> shared;
std::vector<Word> words;
std::vector<Copies> copies;

// Whether an earlier access and one of this thread, now, may happen in either order.
bool unordered(const Stamp& earlier, int thread) {
    if (earlier.thread < 0 || earlier.thread == thread || earlier.epoch != block_epoch) return false;
    return earlier.thread / LANES != thread / LANES || earlier.barriers == warps[thread / LANES].barriers;
}

Stamp now(int thread) { return {thread, block_epoch, warps[thread / LANES].barriers}; }

unsigned char* shared_bytes(Bits32 address, int bytes, const char* what) {
    if (address < BASE || address - BASE + bytes > shared.size())
        fail(std::string(what) + " outside of shared memory, at " + std::to_string(static_cast<int>(address - BASE)));
    if (address % bytes) fail(std::string(what) + " of shared memory at an odd address");
    return &shared[address - BASE];
}

void touch(Bits32 address, int bytes, int thread, bool write) {
    for (Bits32 at = (address - BASE) / 4; at < (address - BASE + bytes) / 4; at++) {
        Word& word = words[at];
        if (word.pending) fail("shared memory is touched while a copy to it is under way");
        if (unordered(word.write, thread)) fail("a race in shared memory: after a write, without a barrier");
        const bool same = word.read.thread >= 0 && word.read.epoch == block_epoch;
        if (write) {
            const bool mine = word.read.thread / LANES == thread / LANES;
            const bool late = word.read.barriers == warps[thread / LANES].barriers;
            if (same && (word.many || unordered(word.read, thread) || (mine && word.several && late)))
                fail("a race in shared memory: a write after a read, without a barrier");
            word.write = now(thread);
        } else {
            const Stamp stamp = now(thread);
            const bool mine = same && word.read.thread / LANES == thread / LANES;
            word.many = same && (word.many || !mine);
            word.several = mine && word.read.barriers == stamp.barriers && (word.several || word.read.thread != thread);
            word.read = stamp;
        }
    }
}

}  // namespace

void reset_memory(int bytes, int threads) {
    shared.assign(bytes, 0xff);  // a NaN in every format
    words.assign((bytes + 3) / 4, Word());
    copies.assign(threads, Copies());
}

std::string memory_leftovers() {
    for (const Word& word : words)
        if (word.pending) return "the block ends while a copy is under way";
    return "";
}

void store_shared(Bits32 address, const void* from, int bytes) {
    unsigned char* to = shared_bytes(address, bytes, "a store");
    touch(address, bytes, here.thread, true);
    std::memcpy(to, from, bytes);
}

void load_shared(Bits32 address, void* to, int bytes) { load_shared_as(here.thread, address, to, bytes); }

void load_shared_as(int thread, Bits32 address, void* to, int bytes) {
    const unsigned char* from = shared_bytes(address, bytes, "a load");
    touch(address, bytes, thread, false);
    std::memcpy(to, from, bytes);
}

void copy_async(Bits32 to, const void* from, int bytes, bool exists) {
    unsigned char* target = shared_bytes(to, bytes, "a copy");
    if (exists) readable(from, bytes);
    touch(to, bytes, here.thread, true);
    std::memset(target, 0xff, bytes);
    for (Bits32 at = (to - BASE) / 4; at < (to - BASE + bytes) / 4; at++) words[at].pending = true;
    copies[here.thread].open.push_back({to, from, bytes, exists});
}

void copy_commit() {
    Copies& mine = copies[here.thread];
    mine.groups.push_back(std::move(mine.open));
    mine.open.clear();
}

void copy_wait(int pending) {
    Copies& mine = copies[here.thread];
    while (static_cast<int>(mine.groups.size()) > pending) {
        for (const Copy& copy : mine.groups.front()) {
            unsigned char* to = shared_bytes(copy.to, copy.bytes, "a copy");
            if (copy.exists) std::memcpy(to, copy.from, copy.bytes);
            else std::memset(to, 0, copy.bytes);
            for (Bits32 at = (copy.to - BASE) / 4; at < (copy.to - BASE + copy.bytes) / 4; at++) {
                words[at].pending = false;
                words[at].write = now(here.thread);
            }
        }
        mine.groups.erase(mine.groups.begin());
    }
}

void expect_shared(Bits32 address, int bytes) {
    if (address < BASE || address - BASE + bytes > shared.size()) fail("a tile outside of shared memory");
    std::memset(&shared[address - BASE], 0xff, bytes);
    for (Bits32 at = (address - BASE) / 4; at < (address - BASE + bytes) / 4; at++) {
        if (words[at].pending) fail("two copies to one place");
        words[at] = Word();
        words[at].pending = true;
    }
}

void arrive_shared(Bits32 address, const void* from, int bytes) {
    std::memcpy(shared_bytes(address, bytes, "a copy"), from, bytes);
    for (Bits32 at = (address - BASE) / 4; at < (address - BASE + bytes) / 4; at++) words[at].pending = false;
}

void peek_shared(Bits32 address, void* to, int bytes) {
    std::memcpy(to, shared_bytes(address, bytes, "a product's read"), bytes);
    if (words[(address - BASE) / 4].pending) fail("a product reads a tile that is still under way");
}

namespace {

void check_global(const void* at, int bytes, bool write) {
    const char* address = static_cast<const char*>(at);
    if (reinterpret_cast<std::uintptr_t>(at) % bytes) fail("global memory at an odd address");
    for (const Range& range : ranges)
        if (address >= range.begin && address + bytes <= range.end) {
            if (write && !range.writable) fail("a write to an input");
            return;
        }
    fail(write ? "a write outside of every tensor" : "a read outside of every tensor");
}

}  // namespace

const void* readable(const void* from, int bytes) {
    check_global(from, bytes, false);
    return from;
}

void* writable(void* to, int bytes) {
    check_global(to, bytes, true);
    return to;
}

}  // namespace machine
