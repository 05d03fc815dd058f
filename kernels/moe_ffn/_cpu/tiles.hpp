// Products of a few tokens with rows of a matrix, in registers.
//
// A panel holds the tokens of a tile side by side, [k][tokens]: its vectors are loaded, an element of the weights is spread
// over a vector, and both are multiplied into sums that never leave the registers while k runs. So weights are read as they
// lie in memory, whichever way that is, and only tokens are brought into another order.
#pragma once

#include <utility>

#include "vectors.hpp"

namespace experts {

using namespace lanes;

// ROWS of the weights times VECTORS of tokens: the sums, a step's tokens and an element fit into the registers.
#if defined(LANES_AVX512) || defined(LANES_NEON)
constexpr int ROWS = 8, VECTORS = 3;
#elif defined(LANES_AVX2)
constexpr int ROWS = 4, VECTORS = 3;
#else
constexpr int ROWS = 4, VECTORS = 2;
#endif
constexpr int TOKENS = VECTORS * WIDTH;  // of a panel

template <int V>
using Sums = Vector[ROWS][V];

// sum[i] += sum over k of row i [k] * panel [k], for k < count. ``row(i, k)`` is an address, and ``later(k)`` is one of
// what will be read after this, or lies beyond the end and is asked for in vain: without it the next weights come too late.
template <int V, class Row, class Later>
__attribute__((always_inline)) inline void multiply(const float* panel, int count, Row row, Later later, Sums<V>& sum) {
#pragma GCC unroll 2
    for (int k = 0; k < count; ++k) {
        __builtin_prefetch(later(k), 0, 3);
        Vector tokens[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) tokens[v] = load(panel + (k * V + v) * WIDTH);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i) {
            const Vector element = all(*row(i, k));
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sum[i][v] += element * tokens[v];
        }
    }
}

// Lanes of the halves of a and b in turn: a0 b0 a1 b1 ..., the lower halves or the upper ones.
template <bool UPPER, int... I>
inline Vector zipped(Vector a, Vector b, std::integer_sequence<int, I...>) {
    constexpr int start = UPPER ? WIDTH / 2 : 0;
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (start + I / 2 + I % 2 * WIDTH)...);
#else
    return __builtin_shuffle(a, b, Integers{(start + I / 2 + I % 2 * WIDTH)...});
#endif
}

// WIDTH rows of WIDTH elements, rows for columns.
inline void transpose(Vector (&rows)[WIDTH]) {
    constexpr auto order = std::make_integer_sequence<int, WIDTH>{};
    for (int stage = 1; stage < WIDTH; stage *= 2) {
        Vector next[WIDTH];
        for (int i = 0; i < WIDTH / 2; ++i) {
            next[2 * i] = zipped<false>(rows[i], rows[i + WIDTH / 2], order);
            next[2 * i + 1] = zipped<true>(rows[i], rows[i + WIDTH / 2], order);
        }
        std::copy(next, next + WIDTH, rows);
    }
}

// To 4e-7 + 8e-8 |x| of the result. Below -87.33 the result is smaller than 1.2e-36, and 0 is said; of -inf too. A NaN stays.
inline Vector silu(Vector x) { return x < all(-87.33f) ? Vector{} : x / (exp2(x * all(-LOG2_E)) + 1.0f); }
inline Vector relu(Vector x) { return x < Vector{} ? Vector{} : x; }

// How many hidden units a tile has: a gated unit takes two rows.
template <bool GATED>
constexpr int UNITS = GATED ? ROWS / 2 : ROWS;

// hidden [UNITS][V * WIDTH] = act(w panel). Of ``left`` units that there are; the others repeat the last one.
// panel [D][V * WIDTH], w: rows of D, those of the values ``up`` behind those of the gates.
template <int V, bool GATED>
inline void hidden_units(const float* panel, int D, const float* w, int64_t up, int left, float* hidden) {
    constexpr int units = UNITS<GATED>;
    const float* rows[ROWS];
    for (int i = 0; i < ROWS; ++i) rows[i] = w + int64_t(std::min(i % units, left - 1)) * D + (i < units ? 0 : up);
    Sums<V> sum = {};
    const float* next = w + units * D;  // as many elements again, of gates and of values in turn
    multiply<V>(
        panel, D, [&](int i, int k) { return rows[i] + k; },
        [&](int k) { return next + k * units + (GATED && k % 2 ? up : 0); }, sum);
    for (int i = 0; i < units; ++i)
        for (int v = 0; v < V; ++v) {
            const Vector x = GATED ? silu(sum[i][v]) * sum[(i + units) % ROWS][v] : relu(sum[i][v]);
            store(hidden + (i * V + v) * WIDTH, x);
        }
}

// out [ROWS][V * WIDTH] += w^T hidden. hidden [count][V * WIDTH], w [count] rows ``stride`` apart, ROWS elements of each.
template <int V>
inline void add_columns(const float* hidden, int count, const float* w, int64_t stride, float* out) {
    Sums<V> sum;
    for (int i = 0; i < ROWS; ++i)
        for (int v = 0; v < V; ++v) sum[i][v] = load(out + (i * V + v) * WIDTH);
    multiply<V>(
        hidden, count, [&](int i, int k) { return w + k * stride + i; },
        [&](int k) { return w + k * stride + ROWS; }, sum);
    for (int i = 0; i < ROWS; ++i)
        for (int v = 0; v < V; ++v) store(out + (i * V + v) * WIDTH, sum[i][v]);
}

}  // namespace experts
