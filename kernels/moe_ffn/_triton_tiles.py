"""What the kernels of ``triton_grouped`` share: which tile a program computes, and tiles in from memory.

Assignments are one list sorted by expert, in which an expert's rows begin anywhere. A tile of rows belongs to one
expert; how many tiles an expert has is known on the device only. So the grid is an upper bound, ``schedule`` writes who
owns which tile, and programs beyond the last leave at once: the host never waits.

A large argument reaches a kernel in one of two forms, told apart by ``TMA``: a pointer, or a tensor descriptor whose
tiles the copy engine of sm_90 fetches, with zeros beyond the end. Rows that are picked one by one are always loaded by
threads. ``WIDEN`` casts to float32: Triton's interpreter computes bfloat16 wrongly, and there only.

Letters: N tokens, D width, H hidden units, F = 2 H, E experts, A assignments, L tiles of rows at most.

Source: Gale et al. 2022, arXiv:2211.15841 (products over experts of uneven size)
"""

from __future__ import annotations

import triton
import triton.language as tl

# Triton takes a parameter's type from its argument; only constants are annotated.
# mypy: disable-error-code="no-untyped-def"

# Tiles of one expert that run side by side. All programs of such a group read the same weights at about the same time;
# 24 tiles of 128 rows hold the tokens of an expert that gets half as many again as the 2048 that it gets on average in
# the cases of a GPU, so that its weights come from memory once.
GROUP = tl.constexpr(24)


@triton.jit
def schedule(counts_base, bounds_base, owners_base, experts, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr):
    """bounds [2, E + 1]: where each expert's rows and tiles begin; owners [L]: the expert of a tile. Grid (E,).

    EXPERTS is a power of two, E or more.
    """
    mine = tl.program_id(0)
    expert = tl.arange(0, EXPERTS)
    counts = tl.load(counts_base + expert, mask=expert < experts, other=0).to(tl.int32)
    tiles = (counts + BLOCK_M - 1) // BLOCK_M
    before = expert < mine
    first_row, first = tl.sum(tl.where(before, counts, 0)), tl.sum(tl.where(before, tiles, 0))
    rows, number = tl.sum(tl.where(expert == mine, counts, 0)), tl.sum(tl.where(expert == mine, tiles, 0))
    tl.store(bounds_base + mine, first_row)
    tl.store(bounds_base + experts + 1 + mine, first)
    if mine == experts - 1:
        tl.store(bounds_base + experts, first_row + rows)
        tl.store(bounds_base + 2 * experts + 1, first + number)
    for start in range(0, number, EXPERTS):
        rank = start + expert
        tl.store(owners_base + first + rank, tl.zeros([EXPERTS], tl.int32) + mine, mask=rank < number)


@triton.jit
def tiles_in_all(bounds_base, experts):
    """Tiles that exist."""
    return tl.load(bounds_base + 2 * experts + 1)


@triton.jit
def place(program, bounds_base, owners_base, experts, columns, BLOCK_M: tl.constexpr):
    """Expert, first row, end of the expert's rows, and the block of columns of a program.

    An expert's programs are neighbours, cut into groups of nearly equal size, at most GROUP tiles each. In a group the
    first block of columns of every tile comes before the second of any.
    """
    expert = tl.load(owners_base + program // columns)
    first_row, end = tl.load(bounds_base + expert), tl.load(bounds_base + expert + 1)
    first = tl.load(bounds_base + experts + 1 + expert)
    number = tl.load(bounds_base + experts + 2 + expert) - first
    height = tl.cdiv(number, tl.cdiv(number, GROUP))
    rest = program - first * columns
    top = rest // (height * columns) * height
    rest -= top * columns
    height = tl.minimum(height, number - top)
    return expert.to(tl.int64), first_row + (top + rest % height) * BLOCK_M, end, rest // height


@triton.jit
def as_read(tile, WIDEN: tl.constexpr):
    return tile.to(tl.float32) if WIDEN else tile


@triton.jit
def picked(source, rows, k, depth, EVEN: tl.constexpr, WIDEN: tl.constexpr):
    """[rows, BLOCK_K] of rows of length ``depth``; zeros beyond their end (EVEN: nobody asks).

    Offsets are formed here, where the compiler sees that rows begin at multiples of 16 bytes, and may copy so many.
    """
    to = source + rows[:, None] * depth + k[None, :]
    return as_read(tl.load(to) if EVEN else tl.load(to, mask=k[None, :] < depth, other=0.0), WIDEN)


@triton.jit
def weights_by_column(
    source, expert, column, start, wide, depth,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HALVES: tl.constexpr, TMA: tl.constexpr, EVEN: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """[HALVES * BLOCK_N, BLOCK_K] of an expert's [HALVES, wide, depth]: the same columns of each half in turn."""
    if TMA:
        tile = source.load([(expert * HALVES).to(tl.int32), column, start]).reshape(HALVES * BLOCK_N, BLOCK_K)
        return as_read(tile, WIDEN)
    else:
        n = tl.arange(0, HALVES * BLOCK_N)
        within = column + n % BLOCK_N
        k = start + tl.arange(0, BLOCK_K)
        rows = expert * HALVES * wide + n // BLOCK_N * wide + tl.minimum(within, wide - 1)
        return picked(source, rows, k, depth, EVEN, WIDEN)


@triton.jit
def halves(sums, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_M, 2 * BLOCK_N] as its left and its right half; no number leaves its thread."""
    return tl.split(tl.permute(tl.reshape(sums, (BLOCK_M, 2, BLOCK_N)), (0, 2, 1)))
