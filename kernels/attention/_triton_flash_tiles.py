"""What the kernels of ``triton_flash`` share: the order of their programs, and tiles in and out of memory.

Every large argument is [heads, T, D] and reaches a kernel in one of two forms, told apart by ``TMA``: a pointer, whose
tile the threads of a block load with a mask, or a tensor descriptor, whose tile the copy engine of sm_90 fetches into
shared memory on its own, with zeros for rows that do not exist. A kernel is written once for both.

``WIDEN`` casts tiles to float32 as they are loaded: Triton's interpreter computes bfloat16 wrongly, and there only.

Source: https://triton-lang.org/main/python-api/generated/triton.language.make_tensor_descriptor.html
"""

from __future__ import annotations

import triton
import triton.language as tl

# Triton takes a parameter's type from its argument; only constants are annotated.
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def place(blocks, heads, section):
    """The block and head of this program on a grid of ``blocks * heads``: rank of the block, head.

    ``section`` heads run side by side, so that what they all read stays in the L2 cache; within a section the first
    rank of every head comes before the second of any. The caller gives the ranks with most work to do the lowest
    numbers: the programs at the end, which leave multiprocessors idle, are then the short ones.
    """
    program = tl.program_id(0)
    first = program // (section * blocks) * section
    rest = program - first * blocks
    width = min(section, heads - first)
    return rest // width, (first + rest % width).to(tl.int64)  # offsets may pass 2**31


@triton.jit
def load_tile(
    source, head, start, length,
    HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, CHECK: tl.constexpr, TMA: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Rows ``start`` to ``start + ROWS`` of one head; those at or beyond ``length`` are zero (CHECK: there may be)."""
    if TMA:
        tile = source.load([head.to(tl.int32), start, 0]).reshape(ROWS, HEAD_DIM)
    else:
        rows = start + tl.arange(0, ROWS)
        at = source + head * length * HEAD_DIM + rows[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
        tile = tl.load(at, mask=rows[:, None] < length, other=0.0) if CHECK else tl.load(at)
    return tile.to(tl.float32) if WIDEN else tile


@triton.jit
def store_tile(target, head, start, length, tile, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, TMA: tl.constexpr):
    """Store the rows that exist, in the memory's dtype."""
    if TMA:
        target.store([head.to(tl.int32), start, 0], tile.to(target.dtype).reshape(1, ROWS, HEAD_DIM))
    else:
        rows = start + tl.arange(0, ROWS)
        at = target + head * length * HEAD_DIM + rows[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
        tl.store(at, tile.to(target.dtype.element_ty), mask=rows[:, None] < length)


@triton.jit
def load_numbers(source, head, rows, length, absent: tl.constexpr, CHECK: tl.constexpr):
    """One number for each row of a head; ``absent`` for rows at or beyond ``length`` (CHECK: there may be)."""
    at = source + head * length + rows
    return tl.load(at, mask=rows < length, other=absent) if CHECK else tl.load(at)


@triton.jit
def hide(scores, queries, keys, length, CAUSAL: tl.constexpr):
    """Minus infinity where a key does not exist or comes after its query. The two index vectors broadcast to scores."""
    seen = keys < length
    if CAUSAL:
        seen = seen & (keys <= queries)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def unmasked_keys(first_query, length, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr):
    """Where the blocks of keys end that every query of a block sees in full."""
    return (first_query if CAUSAL else length) // BLOCK_K * BLOCK_K
