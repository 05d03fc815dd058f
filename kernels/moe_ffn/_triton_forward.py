"""The forward kernels of ``triton_grouped``: tokens to hidden units, hidden units to answers, answers to tokens.

The first fetches token rows where they lie, and computes the same columns of both halves of ``w_in`` in one tile, so
that a hidden unit's gate and value meet in one thread and only their product is written. The second writes a row for
each assignment, already weighted; the third adds up the rows of a token, always in the same order. That moves 2 A D +
N D elements; adding in memory atomically would move a float32 y three times and the additions besides, and would not
repeat itself to the bit.

Letters: N tokens, D width, H hidden units, F = 2 H, E experts, A assignments, L tiles of rows at most.

Source: Gale et al. 2022, arXiv:2211.15841; Shazeer 2020, arXiv:2002.05202 (SwiGLU)
"""

from __future__ import annotations

import triton
import triton.language as tl

from archbench.kernels.moe_ffn._triton_tiles import as_read, halves, picked, place, tiles_in_all, weights_by_column

# mypy: disable-error-code="no-untyped-def"


@triton.jit
def _hidden_tile(
    program, columns, x_base, w_all, token_base, bounds_base, owners_base, h_base, gates_base, dim, hidden, experts,
    KEEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr,
    EVEN: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """What ``in_product`` says about one tile."""
    expert, first, end, block = place(program, bounds_base, owners_base, experts, columns, BLOCK_M)
    rows = first + tl.arange(0, BLOCK_M)
    exists = rows < end
    token = tl.load(token_base + rows, mask=exists, other=0)  # int64
    sums = tl.zeros([BLOCK_M, 2 * BLOCK_N], tl.float32)
    for start in range(0, dim, BLOCK_K):
        x = picked(x_base, token, start + tl.arange(0, BLOCK_K), dim, EVEN, WIDEN)
        w = weights_by_column(w_all, expert, block * BLOCK_N, start, hidden, dim, BLOCK_N, BLOCK_K, 2, TMA, EVEN, WIDEN)
        sums = tl.dot(x, tl.trans(w), sums, input_precision="ieee")
    gate, up = halves(sums, BLOCK_M, BLOCK_N)
    column = block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = exists[:, None] & (column < hidden)[None, :]
    row = rows.to(tl.int64)[:, None]
    if KEEP:
        to = gates_base + row * (2 * hidden) + column[None, :]
        tl.store(to, gate.to(gates_base.dtype.element_ty), mask=inside)
        tl.store(to + hidden, up.to(gates_base.dtype.element_ty), mask=inside)
    said = gate * tl.sigmoid(gate) * up
    tl.store(h_base + row * hidden + column[None, :], said.to(h_base.dtype.element_ty), mask=inside)


@triton.jit
def in_product(
    x_base, w_all, token_base, bounds_base, owners_base, h_base, gates_base, dim, hidden, experts,
    KEEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr,
    STAYS: tl.constexpr, EVEN: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """h [A, H] = silu(x G^T) * (x U^T) of x [N, D] and w [E, F, D]. Grid L * blocks of H, or fewer where STAYS.

    KEEP: the two factors are written, too, to gates [A, F], as a backward needs them. STAYS: a program goes from tile
    to tile, and the first loads of the next one are under way while it writes.
    """
    columns = tl.cdiv(hidden, BLOCK_N)
    programs = tiles_in_all(bounds_base, experts) * columns
    if STAYS:
        for program in tl.range(tl.program_id(0), programs, tl.num_programs(0), flatten=True):
            _hidden_tile(
                program, columns, x_base, w_all, token_base, bounds_base, owners_base, h_base, gates_base,
                dim, hidden, experts, KEEP, BLOCK_M, BLOCK_N, BLOCK_K, TMA, EVEN, WIDEN,
            )  # fmt: skip
    elif tl.program_id(0) < programs:
        _hidden_tile(
            tl.program_id(0), columns, x_base, w_all, token_base, bounds_base, owners_base, h_base, gates_base,
            dim, hidden, experts, KEEP, BLOCK_M, BLOCK_N, BLOCK_K, TMA, EVEN, WIDEN,
        )  # fmt: skip


@triton.jit
def _answer_tile(
    program, columns, rows_all, w_all, weight_base, bounds_base, owners_base, to_base, depth, dim, experts, assignments,
    WEIGHTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr,
    EVEN: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """What ``out_product`` says about one tile."""
    expert, first, end, block = place(program, bounds_base, owners_base, experts, columns, BLOCK_M)
    rows = first + tl.arange(0, BLOCK_M)
    exists = rows < end
    column = block * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if TMA:
            left = as_read(rows_all.load([first, start]), WIDEN)
            right = w_all.load([expert.to(tl.int32), start, block * BLOCK_N]).reshape(BLOCK_K, BLOCK_N)
        else:
            left = picked(rows_all, tl.minimum(rows, assignments - 1).to(tl.int64), k, depth, EVEN, WIDEN)
            known = (column < dim)[None, :] if EVEN else (column < dim)[None, :] & (k < depth)[:, None]
            right = tl.load(w_all + (expert * depth + k)[:, None] * dim + column[None, :], mask=known, other=0.0)
        sums = tl.dot(left, as_read(right, WIDEN), sums, input_precision="ieee")
    if WEIGHTED:
        sums *= tl.load(weight_base + rows, mask=exists, other=0.0)[:, None]
    to = to_base + rows.to(tl.int64)[:, None] * dim + column[None, :]
    tl.store(to, sums.to(to_base.dtype.element_ty), mask=exists[:, None] & (column < dim)[None, :])


@triton.jit
def out_product(
    rows_all, w_all, weight_base, bounds_base, owners_base, to_base, depth, dim, experts, assignments,
    WEIGHTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr,
    STAYS: tl.constexpr, EVEN: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """to [A, D] = rows [A, K] times the expert's of w [E, K, D], K = ``depth``; WEIGHTED: by the row's weight, too.

    Grid L * blocks of D, or fewer where STAYS, as above.
    """
    columns = tl.cdiv(dim, BLOCK_N)
    programs = tiles_in_all(bounds_base, experts) * columns
    if STAYS:
        for program in tl.range(tl.program_id(0), programs, tl.num_programs(0), flatten=True):
            _answer_tile(
                program, columns, rows_all, w_all, weight_base, bounds_base, owners_base, to_base,
                depth, dim, experts, assignments, WEIGHTED, BLOCK_M, BLOCK_N, BLOCK_K, TMA, EVEN, WIDEN,
            )  # fmt: skip
    elif tl.program_id(0) < programs:
        _answer_tile(
            tl.program_id(0), columns, rows_all, w_all, weight_base, bounds_base, owners_base, to_base,
            depth, dim, experts, assignments, WEIGHTED, BLOCK_M, BLOCK_N, BLOCK_K, TMA, EVEN, WIDEN,
        )  # fmt: skip


@triton.jit
def combine(rows_base, slots_base, ends_base, y_base, dim, BLOCK: tl.constexpr):
    """y [N, D]: for each token the sum of the rows that ``slots`` names up to its end. Grid (N, blocks of D)."""
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < dim
    start = tl.load(ends_base + token - 1, mask=token > 0, other=0)
    end = tl.load(ends_base + token)
    sums = tl.zeros([BLOCK], tl.float32)
    for slot in range(start, end):
        row = tl.load(slots_base + slot)  # int64
        sums += tl.load(rows_base + row * dim + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_base + token.to(tl.int64) * dim + column, sums.to(y_base.dtype.element_ty), mask=inside)
