"""The backward of ``triton_flash`` in one pass over the scores: five products, and still the same bits every time.

A program owns a block of keys, whose dK and dV it keeps, and adds its part of dQ to memory, where the parts of all
blocks of keys meet. Sums of floats would depend on who comes first; these are sums of integers, which do not. dQ is
held as ``n_ij * unit_i``, the unit of a row fixed before the pass: with weights p that sum to 1,

    |dq_ij| = |sum_t p_it (dp_it - rowsum_i) k_tj| <= max_t |dp_it - rowsum_i| max |k|
            <= 2 |dout_i| max_t |v_t| max |k| = bound_i

so that with the unit ``bound_i / 2**30`` no sum leaves 31 bits, with a factor of two to spare for rounding. Each part
is cut off below one unit, 2**-30 of the bound; a float32 sum would be rounded at 2**-24 of its own size.

q, dout are [B * H, T, D], k, v, dk, dv [B * G, T, D], the integer sums [B * H, T, D], row_bound float32 [B * H, T], and
bounds the bits of float32 [B * G, 2]: the largest element of k and the largest norm of a row of v.

Source: Dao 2023, arXiv:2307.08691, algorithm 2; the integer sums are ours
"""

from __future__ import annotations

import triton
import triton.language as tl

from archbench.kernels.attention._triton_flash_backward import query_blocks, transposed_gradients
from archbench.kernels.attention._triton_flash_tiles import load_numbers, load_tile, place, store_tile

# mypy: disable-error-code="no-untyped-def"

UNITS = tl.constexpr(2.0**30)
LEAST_BOUND = tl.constexpr(2.0**-80)  # so that no unit is zero


@triton.jit
def key_bounds(k_base, v_base, bounds_base, length, HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr):
    """Raise the bounds of a KV head to those of a block of keys. Grid (blocks of keys, B * G); bounds start at zero.

    Magnitudes are compared as integers, which order like the floats they are the bits of, and NaN above all: what is
    not a number stays one, where a maximum of floats would drop it.
    """
    head = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK_K
    k = load_tile(k_base, head, first, length, HEAD_DIM, BLOCK_K, True, False, True)
    v = load_tile(v_base, head, first, length, HEAD_DIM, BLOCK_K, True, False, True)
    element = tl.max(tl.max(tl.abs(k).to(tl.int32, bitcast=True), 1), 0)
    norm = tl.max(tl.sqrt(tl.sum(v * v, 1)).to(tl.int32, bitcast=True), 0)
    tl.atomic_max(bounds_base + head * 2, element, sem="relaxed")
    tl.atomic_max(bounds_base + head * 2 + 1, norm, sem="relaxed")


@triton.jit
def row_bounds(
    out_base, dout_base, bounds_base, row_sum_base, row_bound_base, shared, length,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """rowsum(dO * O) of a block of queries, and the bound of its dQ. Grid (blocks of queries, B * H)."""
    head = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK_Q
    queries = first + tl.arange(0, BLOCK_Q)
    out = load_tile(out_base, head, first, length, HEAD_DIM, BLOCK_Q, True, False, True)
    dout = load_tile(dout_base, head, first, length, HEAD_DIM, BLOCK_Q, True, False, True)
    largest_k = tl.load(bounds_base + head // shared * 2).to(tl.float32, bitcast=True)
    largest_v = tl.load(bounds_base + head // shared * 2 + 1).to(tl.float32, bitcast=True)
    bound = 2 * tl.sqrt(tl.sum(dout * dout, 1)) * largest_v * largest_k
    bound = tl.where(bound < LEAST_BOUND, LEAST_BOUND, bound)  # not a maximum: NaN stays
    tl.store(row_sum_base + head * length + queries, tl.sum(out * dout, 1), mask=queries < length)
    tl.store(row_bound_base + head * length + queries, bound, mask=queries < length)


@triton.jit
def _share(
    dk, dv, k, v, q_all, dout_all, logsumexp_base, row_sum_base, row_bound_base, sums_all,
    head, keys, start, length, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, DIAGONAL: tl.constexpr, CHECK: tl.constexpr,
    TMA: tl.constexpr, REDUCE: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One block of queries: add its part to dK (without 1/sqrt(D)) and dV, and the keys' part to its dQ in memory."""
    q = load_tile(q_all, head, start, length, HEAD_DIM, BLOCK_Q, CHECK, TMA, WIDEN)
    dout = load_tile(dout_all, head, start, length, HEAD_DIM, BLOCK_Q, CHECK, TMA, WIDEN)
    dv, dscores = transposed_gradients(
        dv,
        k,
        v,
        q,
        dout,
        logsumexp_base,
        row_sum_base,
        head,
        keys,
        start,
        length,
        scale_log2,
        BLOCK_Q,
        BLOCK_K,
        DIAGONAL,
        CHECK,
    )
    dk = tl.dot(dscores, q, dk, input_precision="ieee")
    part = tl.dot(tl.trans(dscores), k, input_precision="ieee")
    rows = start + tl.arange(0, BLOCK_Q)
    bound = load_numbers(row_bound_base, head, rows, length, 1.0, CHECK)
    part = (part * (1 / bound * UNITS)[:, None]).to(tl.int32)
    if REDUCE:
        sums_all.atomic_add([head.to(tl.int32), start, 0], part.reshape(1, BLOCK_Q, HEAD_DIM))
    else:
        at = sums_all + head * length * HEAD_DIM + rows[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
        tl.atomic_add(at, part, mask=rows[:, None] < length, sem="relaxed")
    return dk, dv


@triton.jit
def backward_fused(
    q_all, k_all, v_all, dout_all, logsumexp_base, row_sum_base, row_bound_base, sums_all, dk_all, dv_all,
    heads, shared, section, length, scale_log2, scale,
    HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr,
    REDUCE: tl.constexpr, WIDEN: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """dK and dV of a block of keys and its part of every dQ. Grid blocks of keys * B * G; ``heads`` is B * G.

    EVEN as in ``backward_keys``. REDUCE: ``sums_all`` is a descriptor, and the copy engine adds.
    """
    rank, kv_head = place(tl.cdiv(length, BLOCK_K), heads, section)
    first = rank * BLOCK_K
    keys = first + tl.arange(0, BLOCK_K)
    k = load_tile(k_all, kv_head, first, length, HEAD_DIM, BLOCK_K, True, TMA, WIDEN)
    v = load_tile(v_all, kv_head, first, length, HEAD_DIM, BLOCK_K, True, TMA, WIDEN)
    dk = tl.zeros([BLOCK_K, HEAD_DIM], tl.float32)
    dv = tl.zeros([BLOCK_K, HEAD_DIM], tl.float32)
    diagonal, below = query_blocks(first, length, BLOCK_Q, BLOCK_K, CAUSAL)
    for member in range(shared):
        head = kv_head * shared + member
        for start in range(diagonal, below, BLOCK_Q):
            dk, dv = _share(
                dk, dv, k, v, q_all, dout_all, logsumexp_base, row_sum_base, row_bound_base, sums_all,
                head, keys, start, length, scale_log2, HEAD_DIM, BLOCK_Q, BLOCK_K, True, not EVEN, TMA, REDUCE, WIDEN,
            )  # fmt: skip
        for start in range(below, length, BLOCK_Q):
            dk, dv = _share(
                dk, dv, k, v, q_all, dout_all, logsumexp_base, row_sum_base, row_bound_base, sums_all,
                head, keys, start, length, scale_log2, HEAD_DIM, BLOCK_Q, BLOCK_K, False, not EVEN, TMA, REDUCE, WIDEN,
            )  # fmt: skip
    store_tile(dk_all, kv_head, first, length, dk * scale, HEAD_DIM, BLOCK_K, TMA)
    store_tile(dv_all, kv_head, first, length, dv, HEAD_DIM, BLOCK_K, TMA)


@triton.jit
def settle_queries(
    sums_base, row_bound_base, dq_base, length, scale, HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr
):  # fmt: skip
    """dQ from its integer sums. Grid (blocks of queries, B * H)."""
    head = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK_Q
    queries = first + tl.arange(0, BLOCK_Q)
    sums = load_tile(sums_base, head, first, length, HEAD_DIM, BLOCK_Q, True, False, True)
    bound = load_numbers(row_bound_base, head, queries, length, 1.0, True)
    store_tile(dq_base, head, first, length, sums * (bound * (scale / UNITS))[:, None], HEAD_DIM, BLOCK_Q, False)
