// The softmax over blocks of keys, of two rows a lane, in the layout both kinds of matrix product leave their sums in.
//
// Of 8 columns a lane holds columns 2 (lane % 4) and the next, in row lane / 4 ([0], [1]) and the row 8 below ([2], [3]).
// A row's running maximum and sum are kept; the weights of a block are powers of two of the scores less the maximum, and
// what was added up before shrinks as the maximum grows.
//
// Source: Milakov & Gimelshein 2018, arXiv:1805.02867
#pragma once

#include <tiles.cuh>

// Of the lane's row and the row 8 below.
struct Softmax {
    float highest[2], total[2];

    INLINE void begin() {
        for (int half = 0; half < 2; half++) highest[half] = -INFINITE, total[half] = 0.0f;
    }

    // Scores become weights; shrink is what the output of the blocks before is to be multiplied with.
    template <int N>
    INLINE void soften(float (&scores)[N][4], float (&shrink)[2], float scale_log2) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = highest[half];
#pragma unroll
            for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(scores[n][half * 2], scores[n][half * 2 + 1]));
            top = fmaxf(top, shuffle_xor(top, 1));
            top = fmaxf(top, shuffle_xor(top, 2));
            // Finite from the first block on: every query sees key 0.
            const float shift = top * scale_log2;
            shrink[half] = exp2_fast(highest[half] * scale_log2 - shift);
            highest[half] = top;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = half * 2; i < half * 2 + 2; i++) {
                    scores[n][i] = exp2_fast(scores[n][i] * scale_log2 - shift);
                    sum += scores[n][i];
                }
            total[half] = total[half] * shrink[half] + sum;  // of this lane's columns; the lanes meet at the end
        }
    }

    // What the output is to be multiplied with in the end. Writes the logsumexp of the rows that exist.
    INLINE void finish(float (&inverse)[2], float* logsumexp, int first_row, int length, float scale_log2) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = total[half];
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            inverse[half] = 1.0f / sum;
            const int row = first_row + lane_index() / 4 + half * 8;
            if (lane_index() % 4 == 0 && row < length)
                store_float(logsumexp + row, highest[half] * scale_log2 + log2_fast(sum));
        }
    }
};

template <int N>
INLINE void shrink_rows(float (&sums)[N][4], const float (&factor)[2]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] *= factor[i / 2];
}

// Minus infinity where a key does not exist or comes after its query. `first_query` is of the warp's 16.
template <int N>
INLINE void hide(float (&scores)[N][4], int first_query, int first_key, int length) {
    const int query = first_query + lane_index() / 4;
    const int key = first_key + lane_index() % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = key + n * 8 + i % 2;
            const bool seen = at < length && (!CAUSAL || at <= query + i / 2 * 8);
            if (!seen) scores[n][i] = -INFINITE;
        }
}

// Whether a block of keys needs `hide` for queries from `first_query` on.
INLINE bool is_masked(int first_query, int first_key, int keys, int length) {
    return first_key + keys > (CAUSAL ? min(first_query + 1, length) : length);
}
