// The instructions a warp executes together, as PTX lays their operands out over its lanes.
//
// Source: PTX ISA, ldmatrix, mma.sync.aligned.m16n8k16 with .f16 and .bf16, shfl.sync.bfly, cvt.rn
#include "machine.hpp"

#include <vector>

namespace machine {

namespace {

std::vector<float> all_widened(bool bf16) {
    std::vector<float> table(1 << 16);
    for (unsigned bits = 0; bits < table.size(); bits++) {
        if (bf16) {
            const Bits32 wide = bits << 16;
            std::memcpy(&table[bits], &wide, 4);
        } else {
            const Bits16 narrow = static_cast<Bits16>(bits);
            _Float16 half;
            std::memcpy(&half, &narrow, 2);
            table[bits] = static_cast<float>(half);
        }
    }
    return table;
}
const std::vector<float> HALF = all_widened(false), BFLOAT = all_widened(true);

struct Load { Bits32* out; Bits32 address; };
struct Product { float* sum; const Bits32* a; Bits32 b[2]; };
struct Exchange { float in, out; int mask; };

template <class T>
T& of(const Warp& warp, int lane) { return *static_cast<T*>(const_cast<void*>(warp.given[lane])); }

void load(Warp& warp, bool transposed) {
    const int first = here.thread / LANES * LANES;
    for (int matrix = 0; matrix < 4; matrix++) {
        Bits16 rows[8][8];
        for (int row = 0; row < 8; row++) {
            const int lane = matrix * 8 + row;
            load_shared_as(first + lane, of<Load>(warp, lane).address, rows[row], 16);
        }
        for (int lane = 0; lane < LANES; lane++) {
            const int row = lane / 4, column = lane % 4 * 2;
            const Bits32 low = transposed ? rows[column][row] : rows[row][column];
            const Bits32 high = transposed ? rows[column + 1][row] : rows[row][column + 1];
            of<Load>(warp, lane).out[matrix] = low | high << 16;
        }
    }
}

void multiply(Warp& warp, const float* wide) {
    float a[16][16], b[16][8], sum[16][8];
    for (int lane = 0; lane < LANES; lane++) {
        const Product& mine = of<Product>(warp, lane);
        const int group = lane / 4, pair = lane % 4 * 2;
        for (int i = 0; i < 8; i++)  // a: registers 0, 1 are columns 0 to 7; 1 and 3 are rows 8 to 15
            a[group + i / 2 % 2 * 8][pair + i % 2 + i / 4 * 8] = wide[mine.a[i / 2] >> (i % 2 * 16) & 0xffff];
        for (int i = 0; i < 4; i++) b[pair + i % 2 + i / 2 * 8][group] = wide[mine.b[i / 2] >> (i % 2 * 16) & 0xffff];
        for (int i = 0; i < 4; i++) sum[group + i / 2 * 8][pair + i % 2] = mine.sum[i];
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++)
            for (int column = 0; column < 8; column++) sum[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++)
            of<Product>(warp, lane).sum[i] = sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

}  // namespace

float widened(Bits16 bits, bool bf16) { return (bf16 ? BFLOAT : HALF)[bits]; }

Bits16 rounded(float number, bool bf16) {
    if (bf16) {
        Bits32 bits;
        std::memcpy(&bits, &number, 4);
        if (number != number) return 0x7fff;
        return static_cast<Bits16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    const _Float16 half = static_cast<_Float16>(number);
    Bits16 bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}

void warp_barrier() {
    meet("a warp barrier", nullptr, [](Warp& warp) { warp.barriers++; });
}

float shuffle_xor(float value, int mask) {
    Exchange mine{value, 0.0f, mask};
    meet("a shuffle", &mine, [](Warp& warp) {
        for (int lane = 0; lane < LANES; lane++) {
            Exchange& each = of<Exchange>(warp, lane);
            each.out = of<Exchange>(warp, lane ^ each.mask).in;
        }
    });
    return mine.out;
}

void ldmatrix(Bits32 (&matrices)[4], Bits32 address, bool transposed) {
    const Load mine{matrices, address};
    if (transposed) meet("ldmatrix.trans", &mine, [](Warp& warp) { load(warp, true); });
    else meet("ldmatrix", &mine, [](Warp& warp) { load(warp, false); });
}

void mma(float (&sum)[4], const Bits32 (&a)[4], Bits32 b_low, Bits32 b_high, bool bf16) {
    const Product mine{sum, a, {b_low, b_high}};
    if (bf16) meet("mma.bf16", &mine, [](Warp& warp) { multiply(warp, BFLOAT.data()); });
    else meet("mma.f16", &mine, [](Warp& warp) { multiply(warp, HALF.data()); });
}

}  // namespace machine
