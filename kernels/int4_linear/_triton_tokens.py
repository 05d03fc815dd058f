"""Triton kernel of ``triton_w4a16`` for several tokens: 4-bit weights become bfloat16 on their way to a product.

Rows of the matrix are the first operand of the tensor cores' product and tokens the second, so few tokens leave few of
the units idle. Weights lie in chunks of 64 columns, all rows of a chunk one after the other: a tile is one piece of
memory. A byte holds a column of the chunk's first half and the one 32 further on, so each half is a product of its own,
nothing is interleaved, and a row of a half has one scale.

``WIDEN`` multiplies in float32: Triton's interpreter computes bfloat16 wrongly, and there only.

Letters: M tokens, N outputs, K inputs, P parts of K. Source: docs/notes/int4_linear.md
"""

from __future__ import annotations

import triton
import triton.language as tl

# Triton takes a parameter's type from its argument; only constants are annotated.
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def many_tokens(
    x_base, bytes_base, scales_base, y_base, tokens, inputs, outputs, group, chunks, share,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """y [P, layers, M, N] of x [M, K], bytes [layers, chunks, N, 32] and scales [layers, groups, N].

    Grid (blocks of rows, blocks of tokens, layers * P). A part is ``share`` chunks.
    """
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    layer, part = (tl.program_id(2) // PARTS).to(tl.int64), tl.program_id(2) % PARTS
    layers = tl.num_programs(2) // PARTS
    exists, asked = row < outputs, token < tokens
    column = tl.arange(0, 32)
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for chunk in range(part * share, tl.minimum(part * share + share, chunks)):
        at = (layer * chunks + chunk) * outputs + row
        packed = tl.load(bytes_base + at[:, None] * 32 + column[None, :], mask=exists[:, None], other=0)
        for half in tl.static_range(2):
            first = chunk * 64 + half * 32  # where K ends, a second half may be missing
            scales = tl.load(
                scales_base + (layer * (inputs // group) + first // group) * outputs + row,
                mask=exists & (first < inputs), other=0.0,
            )  # fmt: skip
            codes = packed >> 4 if half else packed & 15
            weights = (codes.to(tl.float32) - 8.0) * scales.to(tl.float32)[:, None]
            x = tl.load(
                x_base + token.to(tl.int64)[None, :] * inputs + (first + column)[:, None],
                mask=asked[None, :] & (first < inputs), other=0.0,
            )  # fmt: skip
            if WIDEN:
                sums = tl.dot(weights, x.to(tl.float32), sums, input_precision="ieee")
            else:
                sums = tl.dot(weights.to(tl.bfloat16), x, sums)
    to = y_base + ((part * layers + layer) * tokens + token.to(tl.int64))[None, :] * outputs + row[:, None]
    tl.store(to, sums.to(y_base.dtype.element_ty), mask=exists[:, None] & asked[None, :])
