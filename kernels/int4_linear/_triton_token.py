"""Triton kernels of ``triton_w4a16`` for one token: a matrix of 4-bit weights times a vector, and the sum of parts.

A thread reads 16 bytes of a row at once: the 32 columns of a block, so that a warp's load is 512 bytes in a piece and a
block's scale belongs to one thread. x is read once for all rows of a program. A code becomes a float by one mask: its
four bits, put into the top of the mantissa of 16, are 16 to 31, and 24 times the sum of x is taken off a block's sum at
its end. All arithmetic is in float32; Triton's interpreter needs that, too: it computes bfloat16 wrongly.

Word j of a block holds, from its low bits, columns 8p + 2j and 8p + 2j + 1 for p = 0 to 3: a thread reads 16 bytes of x
for each p, as words of two bfloat16. ``exponent`` is 16.0 as bits, and an argument: two constants in one mask would be
two instructions.

Letters: N outputs, K inputs, P parts of K. Source: docs/notes/int4_linear.md
"""

from __future__ import annotations

import triton
import triton.language as tl

# Triton takes a parameter's type from its argument; only constants are annotated.
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def _code(words, exponent, NIBBLE: tl.constexpr):
    """16 plus a code of each word."""
    moved = words << (19 - 4 * NIBBLE) if NIBBLE < 5 else words >> (4 * NIBBLE - 19)
    return ((moved & 0x780000) | exponent).to(tl.float32, bitcast=True)


@triton.jit
def one_token(
    x_base, words_base, scales_base, y_base, outputs, blocks, share, group_blocks, exponent,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """y [P, layers, N] of x [K / 2], words [layers, N, blocks, 4] and scales [layers, N, groups].

    Grid (blocks of ROWS rows, layers, P). A part is ``share`` blocks, a multiple of BLOCKS.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    layer, part = tl.program_id(1), tl.program_id(2)
    exists = row < outputs
    at = layer.to(tl.int64) * outputs + row
    word = tl.arange(0, 4)
    sums = tl.zeros([ROWS, BLOCKS], tl.float32)
    for start in range(part * share, tl.minimum(part * share + share, blocks), BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        inside = block < blocks
        there = exists[:, None] & inside[None, :]
        words = tl.load(
            words_base + at[:, None, None] * (blocks * 4) + (block * 4)[None, :, None] + word[None, None, :],
            mask=there[:, :, None], other=0,
        )  # fmt: skip
        scales = tl.load(
            scales_base + at[:, None] * (blocks // group_blocks) + (block // group_blocks)[None, :],
            mask=there, other=0.0,
        )  # fmt: skip
        dots = tl.zeros([ROWS, BLOCKS, 4], tl.float32)
        total = tl.zeros([BLOCKS, 4], tl.float32)
        for p in tl.static_range(4):
            pairs = tl.load(x_base + (block * 16 + 4 * p)[:, None] + word[None, :], mask=inside[:, None], other=0)
            even = (pairs << 16).to(tl.float32, bitcast=True)
            odd = (pairs & -65536).to(tl.float32, bitcast=True)
            dots += _code(words, exponent, 2 * p) * even[None, :, :]
            dots += _code(words, exponent, 2 * p + 1) * odd[None, :, :]
            total += even + odd
        sums += (tl.sum(dots, 2) - 24.0 * tl.sum(total, 1)[None, :]) * scales.to(tl.float32)
    y = tl.sum(sums, 1)
    to = y_base + (part.to(tl.int64) * tl.num_programs(1) + layer) * outputs + row
    tl.store(to, y.to(y_base.dtype.element_ty), mask=exists)


@triton.jit
def merge(parts_base, y_base, count, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """y [count], the sum of parts [PARTS, count] in their order. Grid (blocks of y)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = at < count
    y = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(PARTS):
        y += tl.load(parts_base + part * count + at, mask=exists, other=0.0)
    tl.store(y_base + at, y.to(y_base.dtype.element_ty), mask=exists)
