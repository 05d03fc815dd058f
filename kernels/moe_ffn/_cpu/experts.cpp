// Experts applied to rows sorted by expert, from gathered tokens to what the experts say, in one pass.
//
// A thread takes a few panels of an expert's tokens and goes through its hidden units in blocks: a block's units are
// computed, gated while they are in registers, and at once multiplied into the answers. Neither hidden units nor gates are
// ever written to memory, weights are read where they lie, and nobody waits for anybody before the end.
//
// Letters: N tokens, A rows, D width, H hidden units, F = 2 H where units are gated, else H, E experts.

#include <omp.h>

#include <atomic>
#include <vector>

#include "tiles.hpp"

namespace {

using namespace experts;

constexpr int BLOCK_UNITS = 128;            // hidden units
constexpr int64_t PANELS_BYTES = 1 << 20;   // of tokens, answers and hidden units a thread works on: a second-level cache

struct Experts {
    int64_t D, H;
    const float *w_in, *w_out;  // [E][F][D], [E][H][D]
};

// Rows of one expert.
struct Piece {
    int64_t expert, first;
    int rows;
};

// That a thread works on at once. An element of a weight is read once for all of them.
int most_panels(int64_t D) {
    return int(std::max<int64_t>(1, PANELS_BYTES / (int64_t(TOKENS) * 4 * (2 * D + BLOCK_UNITS))));
}

// The work in pieces, smaller ones towards the end: the last thread to finish should not be alone for long.
std::vector<Piece> pieces_of(const int64_t* counts, int64_t E, int64_t D, int threads) {
    int64_t left = 0;
    for (int64_t e = 0; e < E; ++e) left += (counts[e] + TOKENS - 1) / TOKENS;
    std::vector<Piece> pieces;
    for (int64_t e = 0, first = 0; e < E; ++e)
        for (int64_t rows = counts[e]; rows > 0;) {
            const int64_t panels = std::clamp<int64_t>(left / (2 * threads), 1, most_panels(D));
            const int taken = int(std::min(rows, panels * TOKENS));
            pieces.push_back({e, first, taken});
            first += taken, rows -= taken, left -= (taken + TOKENS - 1) / TOKENS;
        }
    return pieces;
}

// A thread's memory, in floats: panels of tokens, of answers and of a block of hidden units, columns of the last tile.
struct Scratch {
    float *tokens, *answers, *hidden, *columns;
    Scratch(float* base, int64_t D) {
        const int64_t panel = int64_t(TOKENS) * most_panels(D);
        tokens = base, answers = tokens + panel * D, hidden = answers + panel * round_up(int(D), ROWS);
        columns = hidden + panel * BLOCK_UNITS;
    }
    static int64_t floats(int64_t D) {
        const int64_t panel = int64_t(TOKENS) * most_panels(D);
        return panel * (D + round_up(int(D), ROWS) + BLOCK_UNITS) + BLOCK_UNITS * ROWS;
    }
};

// A panel's vectors: as many as its tokens need.
int vectors_of(int rows, int panel) { return std::min(VECTORS, (rows - panel * TOKENS + WIDTH - 1) / WIDTH); }

template <class Do>
inline void with_vectors(int vectors, Do call) {
    if (vectors == 1) call(std::integral_constant<int, 1>{});
    else if (vectors == 2) call(std::integral_constant<int, 2>{});
    else call(std::integral_constant<int, VECTORS>{});
}

// x [N][D], rows ``token`` -> [D][width], zeros where there is no token.
void take(const float* x, const int64_t* token, int rows, int64_t D, int width, float* panel) {
    for (int start = 0; start < width; start += WIDTH) {
        const int here = std::min(WIDTH, rows - start);
        int64_t d = 0;
        for (; d + WIDTH <= D; d += WIDTH) {
            Vector square[WIDTH] = {};
            for (int t = 0; t < here; ++t) square[t] = load(x + token[start + t] * D + d);
            transpose(square);
            for (int c = 0; c < WIDTH; ++c) store(panel + (d + c) * width + start, square[c]);
        }
        for (; d < D; ++d)
            for (int t = 0; t < WIDTH; ++t) panel[d * width + start + t] = t < here ? x[token[start + t] * D + d] : 0.0f;
    }
}

// [D][width] -> said [rows][D].
void give(const float* panel, int rows, int64_t D, int width, float* said) {
    for (int start = 0; start < rows; start += WIDTH) {
        const int here = std::min(WIDTH, rows - start);
        int64_t d = 0;
        for (; d + WIDTH <= D; d += WIDTH) {
            Vector square[WIDTH];
            for (int c = 0; c < WIDTH; ++c) square[c] = load(panel + (d + c) * width + start);
            transpose(square);
            for (int t = 0; t < here; ++t) store(said + (start + t) * D + d, square[t]);
        }
        for (; d < D; ++d)
            for (int t = 0; t < here; ++t) said[(start + t) * D + d] = panel[d * width + start + t];
    }
}

template <bool GATED>
void apply(const Experts& e, const Piece& piece, const float* x, const int64_t* token, float* said, const Scratch& s) {
    const int panels = (piece.rows + TOKENS - 1) / TOKENS;
    const int64_t D = e.D, H = e.H, answers = int64_t(TOKENS) * round_up(int(D), ROWS);
    for (int p = 0; p < panels; ++p) {
        const int start = p * TOKENS, width = vectors_of(piece.rows, p) * WIDTH;
        take(x, token + piece.first + start, std::min(TOKENS, piece.rows - start), D, width, s.tokens + start * D);
    }
    std::fill(s.answers, s.answers + panels * answers, 0.0f);
    const float* w_in = e.w_in + piece.expert * (GATED ? 2 : 1) * H * D;
    const float* w_out = e.w_out + piece.expert * H * D;
    for (int64_t h = 0; h < H; h += BLOCK_UNITS) {
        const int block = int(std::min<int64_t>(BLOCK_UNITS, H - h));
        for (int u = 0; u < block; u += UNITS<GATED>)
            for (int p = 0; p < panels; ++p)
                with_vectors(vectors_of(piece.rows, p), [&](auto v) {
                    hidden_units<v, GATED>(s.tokens + p * TOKENS * D, int(D), w_in + (h + u) * D, H * D, block - u,
                                           s.hidden + p * TOKENS * BLOCK_UNITS + u * v * WIDTH);
                });
        for (int64_t d = 0; d < D; d += ROWS) {
            const float* w = w_out + h * D + d;
            int64_t stride = D;
            if (D - d < ROWS) {
                for (int k = 0; k < block; ++k)
                    for (int i = 0; i < ROWS; ++i) s.columns[k * ROWS + i] = i < D - d ? w[k * D + i] : 0.0f;
                w = s.columns, stride = ROWS;
            }
            for (int p = 0; p < panels; ++p)
                with_vectors(vectors_of(piece.rows, p), [&](auto v) {
                    add_columns<v>(s.hidden + p * TOKENS * BLOCK_UNITS, block, w, stride,
                                   s.answers + p * answers + d * v * WIDTH);
                });
        }
    }
    for (int p = 0; p < panels; ++p) {
        const int start = p * TOKENS, width = vectors_of(piece.rows, p) * WIDTH;
        give(s.answers + p * answers, std::min(TOKENS, piece.rows - start), D, width, said + (piece.first + start) * D);
    }
}

}  // namespace

// Floats of scratch memory that a thread wants; D from 1 to 2^28.
extern "C" int64_t archbench_moe_scratch(int64_t D) { return Scratch::floats(D); }

// said [A][D] = what each row's expert says of its token. x [N][D], token [A] below N, counts [E] of the rows of each
// expert, A in all; scratch of archbench_moe_scratch for each thread, of which there is at least one. Nothing is checked.
extern "C" void archbench_moe_forward(int gated, int64_t E, int64_t D, int64_t H, const float* x, const int64_t* token,
                                      const int64_t* counts, const float* w_in, const float* w_out, float* scratch,
                                      int threads, float* said) {
    const Experts experts{D, H, w_in, w_out};
    const std::vector<Piece> pieces = pieces_of(counts, E, D, threads);
    std::atomic<size_t> next{0};
#pragma omp parallel num_threads(threads)
    {
        const Scratch mine(scratch + omp_get_thread_num() * Scratch::floats(D), D);
        for (size_t i; (i = next.fetch_add(1)) < pieces.size();)
            if (gated) apply<true>(experts, pieces[i], x, token, said, mine);
            else apply<false>(experts, pieces[i], x, token, said, mine);
    }
}
