// Products of a warp group, copies of tiles and barriers that count bytes, as PTX defines them.
//
// A product is done when its warp waits for it, or at once: the order decides. Until then its registers and its tiles are
// in use, and what a kernel does to them too early shows in the result. Tiles arrive when somebody waits for them.
// Each of a group's warps does its 16 rows by itself: hardware promises no more about when the others are done.
//
// Source: PTX ISA, wgmma.mma_async and its matrix descriptors, mbarrier, cp.async.bulk.tensor with 128-byte swizzle
#include "machine.hpp"

#include "hopper.cuh"

#include <map>

namespace machine {

namespace {

struct Barrier { int arrivals = 0, missing = 0, bytes = 0, phase = 0; };
struct Box { Bits32 to; TensorMap map; int column, row, head; Bits32 barrier; };
struct Group { int arrived = 0; unsigned done = 0; };
struct Product {
    float* sums[LANES];
    const Bits32* left[LANES];
    int columns, rows;  // rows: the first of the warp's 16
    Bits64 left_matrix, right_matrix;
    bool add, bf16, done;
};
struct Products {
    std::vector<Product> open;
    std::vector<std::vector<Product>> groups;
    bool begun = false;
};

std::map<Bits32, Barrier> barriers;
std::vector<Box> boxes;
std::map<int, Group> groups;
std::vector<Products> products;
std::map<int, int> registers;

Barrier& barrier_at(Bits32 address) {
    const auto found = barriers.find(address);
    if (found == barriers.end()) fail("a barrier nobody initialised");
    return found->second;
}

void settle_phase(Barrier& barrier) {
    if (barrier.missing || barrier.bytes) return;
    barrier.phase ^= 1;
    barrier.missing = barrier.arrivals;
}

void deliver(size_t which) {
    const Box box = boxes[which];
    boxes.erase(boxes.begin() + static_cast<long>(which));
    const auto* base = reinterpret_cast<const Bits16*>(box.map.opaque[0]);
    const long long columns = box.map.opaque[1], rows = box.map.opaque[2], heads = box.map.opaque[3];
    const int box_rows = static_cast<int>(box.map.opaque[4]);
    for (int row = 0; row < box_rows; row++)
        for (int chunk = 0; chunk < 8; chunk++) {
            Bits16 values[8] = {};
            const long long at = box.row + row;
            if (at < rows && box.head < heads && box.column + chunk * 8 < columns) {
                const Bits16* from = base + (box.head * rows + at) * columns + box.column + chunk * 8;
                std::memcpy(values, readable(from, 16), 16);
            }
            const Bits32 to = box.to + row * 128 + chunk * 16;
            arrive_shared(to ^ (to / 128 % 8 * 16), values, 16);  // the swizzle is one of the address
        }
    Barrier& barrier = barrier_at(box.barrier);
    barrier.bytes -= box_rows * 128;
    settle_phase(barrier);
}

// Element (along the output, along the sum) of a matrix in shared memory.
float element(Bits64 matrix, bool sum_in_rows, int outer, int k, bool bf16) {
    if (matrix >> 62 != 1) fail("a matrix that is not in 128-byte swizzle");
    const Bits32 start = (matrix & 0x3fff) << 4, leading = (matrix >> 16 & 0x3fff) << 4, stride = (matrix >> 32 & 0x3fff) << 4;
    if (start / 128 % 8) fail("a matrix that does not begin with a row 0 of the swizzle");
    const Bits32 at = sum_in_rows ? start + outer / 64 * leading + outer % 64 * 2 + k / 8 * stride + k % 8 * 128
                                  : start + outer / 8 * stride + outer % 8 * 128 + k * 2;
    Bits16 bits;
    peek_shared(at ^ (at / 128 % 8 * 16), &bits, 2);
    return widened(bits, bf16);
}

void compute(Product& product) {
    if (product.done) return;
    product.done = true;
    const int columns = product.columns;
    std::vector<float> right(16 * columns);
    for (int k = 0; k < 16; k++)
        for (int n = 0; n < columns; n++)
            right[k * columns + n] = element(product.right_matrix, product.left[0] != nullptr, n, k, product.bf16);
    std::vector<float> sum(columns);
    for (int row = 0; row < 16; row++) {
        float left[16];
        for (int k = 0; k < 16; k++) {
            const int lane = row % 8 * 4 + k % 8 / 2, part = row / 8 + k / 8 * 2;
            left[k] = product.left[0] ? widened(product.left[lane][part] >> (k % 2 * 16) & 0xffff, product.bf16)
                                      : element(product.left_matrix, false, product.rows + row, k, product.bf16);
        }
        for (int n = 0; n < columns; n++) {
            const float before = product.sums[row % 8 * 4 + n % 8 / 2][n / 8 * 4 + row / 8 * 2 + n % 2];
            sum[n] = product.add ? before : 0.0f;
        }
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < columns; n++) sum[n] += left[k] * right[k * columns + n];
        for (int n = 0; n < columns; n++)
            product.sums[row % 8 * 4 + n % 8 / 2][n / 8 * 4 + row / 8 * 2 + n % 2] = sum[n];
    }
}

}  // namespace

void reset_hopper(int threads) {
    barriers.clear();
    boxes.clear();
    groups.clear();
    registers.clear();
    products.assign(threads / LANES, Products());
}

std::string hopper_leftovers() {
    if (!boxes.empty()) return "the block ends while a tile is under way";
    for (const Products& each : products)
        if (!each.open.empty() || !each.groups.empty()) return "the block ends while a product is under way";
    int all = 0;
    for (const auto& each : registers) all += each.second * LANES;
    return all > 65536 ? "more registers than a multiprocessor has" : "";
}

void barrier_init(Bits32 barrier, int arrivals) {
    const Bits64 bits = 0;
    if (barrier % 8) fail("a barrier at an odd address");
    store_shared(barrier, &bits, 8);
    barriers[barrier] = {arrivals, arrivals, 0, 0};
}

void barrier_arrive(Bits32 address, int bytes) {
    Barrier& barrier = barrier_at(address);
    if (!barrier.missing) fail("more arrivals at a barrier than it counts");
    barrier.bytes += bytes;
    barrier.missing--;
    settle_phase(barrier);
}

void barrier_wait(Bits32 address, int parity) {
    while (barrier_at(address).phase == parity) {
        if (!boxes.empty() && !sometimes()) deliver(pick(static_cast<int>(boxes.size())));
        else give_way(true);
    }
}

void copy_box(Bits32 to, const TensorMap& map, int column, int row, int head, Bits32 barrier) {
    if (to % 1024) fail("a tile that begins inside of the swizzle");
    barrier_at(barrier);
    expect_shared(to, static_cast<int>(map.opaque[4]) * 128);
    boxes.push_back({to, map, column, row, head, barrier});
}

void group_barrier(int number) {
    Group& group = groups[number];
    const unsigned before = group.done;
    if (++group.arrived == 4 * LANES) {
        group.arrived = 0;
        group.done++;
    }
    while (groups[number].done == before) give_way(true);
}

void change_registers(int count, bool) { registers[here.thread / LANES] = count; }

void wgmma_begin() {
    meet("wgmma.fence", nullptr, [](Warp&) { products[here.thread / LANES].begun = true; });
}

void wgmma(float (*sums)[4], int columns, const Bits32* left, Bits64 left_matrix, Bits64 right_matrix, bool add, bool bf16) {
    const Product mine{{&sums[0][0]}, {left}, columns, here.thread / LANES % 4 * 16, left_matrix, right_matrix, add, bf16,
                       false};
    meet("wgmma", &mine, [](Warp& warp) {
        Product all = *static_cast<const Product*>(warp.given[0]);
        for (int lane = 0; lane < LANES; lane++) {
            const auto* each = static_cast<const Product*>(warp.given[lane]);
            all.sums[lane] = each->sums[0];
            all.left[lane] = each->left[0];
            if (each->right_matrix != all.right_matrix || each->left_matrix != all.left_matrix)
                fail("lanes disagree about a matrix");
        }
        Products& mine = products[here.thread / LANES];
        if (!mine.begun) fail("a product without wgmma.fence before it");
        mine.open.push_back(all);
    });
}

void wgmma_commit() {
    meet("wgmma.commit_group", nullptr, [](Warp&) {
        Products& mine = products[here.thread / LANES];
        mine.begun = false;
        mine.groups.push_back(std::move(mine.open));
        mine.open.clear();
        if (sometimes())  // done at once, with everything before it
            for (auto& group : mine.groups)
                for (Product& product : group) compute(product);
    });
}

void wgmma_wait(int pending) {
    if (here.thread % LANES == 0) give_way(true);  // a product takes its time, in which others come further
    meet("wgmma.wait_group", &pending, [](Warp& warp) {
        Products& mine = products[here.thread / LANES];
        const size_t left = *static_cast<const int*>(warp.given[0]);
        for (; mine.groups.size() > left; mine.groups.erase(mine.groups.begin()))
            for (Product& product : mine.groups.front()) compute(product);
    });
}

}  // namespace machine
