"""The backward kernels of ``triton_grouped``: gradients of the hidden units, and of the weights.

With p = dy V^T for an assignment's token, before its weight: the weight's gradient is <p, h>, because y's part is
weight * h V; the hidden units' gradient is weight * p. So one product with ``w_out`` gives both, and nothing of the
forward but the two factors of h is kept. Its program also writes weight * h, which is what the gradient of ``w_out`` is
a product of. dx is ``out_product`` of the forward with ``w_in``.

A gradient of weights is, expert by expert, a product over the expert's rows, however many: none gives zeros.

Letters: N tokens, D width, H hidden units, F = 2 H, P either, E experts, A assignments, L tiles of rows at most.

Source: Shazeer 2020, arXiv:2002.05202 (SwiGLU); the derivatives are the module's own
"""

from __future__ import annotations

import triton
import triton.language as tl

from archbench.kernels.moe_ffn._triton_tiles import (
    GROUP,
    as_read,
    halves,
    picked,
    place,
    tiles_in_all,
    weights_by_column,
)

# mypy: disable-error-code="no-untyped-def"


@triton.jit
def _settle(p, bases, weight, rows, exists, first, hidden, BLOCK: tl.constexpr):
    """Write dgates and weighted of BLOCK columns, and return the rows' part of <p, h>."""
    gates_base, dgates_base, weighted_base = bases
    column = first + tl.arange(0, BLOCK)
    inside = exists[:, None] & (column < hidden)[None, :]
    row = rows.to(tl.int64)[:, None]
    factors = row * (2 * hidden) + column[None, :]
    gate = tl.load(gates_base + factors, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gates_base + factors + hidden, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    silu = gate * share
    h = silu * up
    to = weighted_base + row * hidden + column[None, :]
    tl.store(to, (weight[:, None] * h).to(weighted_base.dtype.element_ty), mask=inside)
    slope = tl.sum(p * h, 1)
    p *= weight[:, None]
    to = dgates_base + factors
    tl.store(to, (p * up * (share + silu * (1 - share))).to(dgates_base.dtype.element_ty), mask=inside)
    tl.store(to + hidden, (p * silu).to(dgates_base.dtype.element_ty), mask=inside)
    return slope


@triton.jit
def hidden_gradient(
    dy_base, w_all, token_base, weight_base, bounds_base, owners_base, gates_base,
    dgates_base, weighted_base, slopes_base, dim, hidden, experts, assignments,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr, EVEN: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """dgates [A, F], weighted [A, H] and slopes [blocks of H, A], whose sum is dweight [A].

    dy is [N, D], w [E, H, D], gates [A, F] the factors of h. Grid L * blocks of H.
    """
    columns = tl.cdiv(hidden, BLOCK_N)
    program = tl.program_id(0)
    if program >= tiles_in_all(bounds_base, experts) * columns:
        return
    expert, first, end, block = place(program, bounds_base, owners_base, experts, columns, BLOCK_M)
    rows = first + tl.arange(0, BLOCK_M)
    exists = rows < end
    token = tl.load(token_base + rows, mask=exists, other=0)  # int64
    p = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, dim, BLOCK_K):
        dy = picked(dy_base, token, start + tl.arange(0, BLOCK_K), dim, EVEN, WIDEN)
        w = weights_by_column(w_all, expert, block * BLOCK_N, start, hidden, dim, BLOCK_N, BLOCK_K, 1, TMA, EVEN, WIDEN)
        p = tl.dot(dy, tl.trans(w), p, input_precision="ieee")
    weight = tl.load(weight_base + rows, mask=exists, other=0.0)
    # In two halves: the whole tile and both factors of h at once would find no registers.
    HALF: tl.constexpr = BLOCK_N // 2
    left, right = halves(p, BLOCK_M, HALF)
    column = block * BLOCK_N
    to = gates_base, dgates_base, weighted_base
    slope = _settle(left, to, weight, rows, exists, column, hidden, HALF)
    slope += _settle(right, to, weight, rows, exists, column + HALF, hidden, HALF)
    tl.store(slopes_base + block.to(tl.int64) * assignments + rows, slope, mask=exists)


@triton.jit
def weight_gradient(
    left_base, right_base, token_base, bounds_base, to_base, wide, dim,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """to [E, P, D]: the sum over an expert's rows of left [A, P], transposed, times right [N, D] of their tokens.

    P is ``wide``. Grid E * blocks of P * blocks of D.
    """
    tall, columns = tl.cdiv(wide, BLOCK_M), tl.cdiv(dim, BLOCK_N)
    program = tl.program_id(0)
    expert = (program // (tall * columns)).to(tl.int64)
    rest = program % (tall * columns)
    top = rest // (GROUP * columns) * GROUP
    rest -= top * columns
    height = tl.minimum(GROUP, tall - top)
    p = (top + rest % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = rest // height * BLOCK_N + tl.arange(0, BLOCK_N)
    first, end = tl.load(bounds_base + expert), tl.load(bounds_base + expert + 1)
    step = tl.arange(0, BLOCK_K)
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # The tokens of a step are asked for a step ahead, or every load of rows would wait for one of its tokens.
    token = tl.load(token_base + first + step, mask=first + step < end, other=0)
    for start in range(first, end, BLOCK_K):
        rows = start + step
        exists = rows < end
        left = tl.load(
            left_base + rows.to(tl.int64)[None, :] * wide + p[:, None],
            mask=exists[None, :] & (p < wide)[:, None], other=0.0,
        )  # fmt: skip
        right = tl.load(
            right_base + token[:, None] * dim + d[None, :], mask=exists[:, None] & (d < dim)[None, :], other=0.0
        )
        token = tl.load(token_base + rows + BLOCK_K, mask=rows + BLOCK_K < end, other=0)
        sums = tl.dot(as_read(left, WIDEN), as_read(right, WIDEN), sums, input_precision="ieee")
    to = to_base + (expert * wide + p)[:, None] * dim + d[None, :]
    tl.store(to, sums.to(to_base.dtype.element_ty), mask=(p < wide)[:, None] & (d < dim)[None, :])
