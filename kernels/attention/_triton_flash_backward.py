"""The backward of ``triton_flash`` as two kernels: dK and dV by blocks of keys, dQ by blocks of queries.

Seven products, because the scores and the weights' gradients are computed in both; each result is written once, by one
program. q, dout, dq are [B * H, T, D], k, v, dk, dv [B * G, T, D], logsumexp and row_sum float32 [B * H, T].

Source: Dao 2023, arXiv:2307.08691, algorithm 2
"""

from __future__ import annotations

import triton
import triton.language as tl

from archbench.kernels.attention._triton_flash_tiles import (
    hide,
    load_numbers,
    load_tile,
    place,
    store_tile,
    unmasked_keys,
)

# mypy: disable-error-code="no-untyped-def"


@triton.jit
def row_sums(out_base, dout_base, row_sum_base, length, HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr):
    """rowsum(dO * O) of a block of queries. Grid (blocks of queries, B * H)."""
    head = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK_Q
    queries = first + tl.arange(0, BLOCK_Q)
    out = load_tile(out_base, head, first, length, HEAD_DIM, BLOCK_Q, True, False, True)
    dout = load_tile(dout_base, head, first, length, HEAD_DIM, BLOCK_Q, True, False, True)
    tl.store(row_sum_base + head * length + queries, tl.sum(out * dout, 1), mask=queries < length)


@triton.jit
def transposed_gradients(
    dv, k, v, q, dout, logsumexp_base, row_sum_base, head, keys, start, length, scale_log2,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, DIAGONAL: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """A block of keys by one of queries: dv with its part added, and the scores' gradients [keys, queries]."""
    queries = start + tl.arange(0, BLOCK_Q)
    # A query that does not exist gets the logsumexp +inf, so its weights are zero: no mask needed on the tile.
    logsumexp = load_numbers(logsumexp_base, head, queries, length, float("inf"), CHECK)
    row_sum = load_numbers(row_sum_base, head, queries, length, 0.0, CHECK)
    # What is subtracted from every column is what the accumulator starts from: it takes no registers of its own.
    shape: tl.constexpr = [BLOCK_K, BLOCK_Q]
    scores = tl.broadcast_to((logsumexp / -scale_log2)[None, :], shape)
    scores = tl.dot(k, tl.trans(q), scores, input_precision="ieee")
    if DIAGONAL:
        scores = hide(scores, queries[None, :], keys[:, None], length, True)
    weights = tl.exp2(scores * scale_log2)
    dv = tl.dot(weights.to(dout.dtype), dout, dv, input_precision="ieee")
    dweights = tl.dot(v, tl.trans(dout), tl.broadcast_to(-row_sum[None, :], shape), input_precision="ieee")
    return dv, (weights * dweights).to(q.dtype)


@triton.jit
def _collect(
    dk, dv, k, v, q_all, dout_all, logsumexp_base, row_sum_base, head, keys, start, length, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, DIAGONAL: tl.constexpr, CHECK: tl.constexpr,
    TMA: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Add one block of queries to dK (without 1/sqrt(D)) and dV of a block of keys."""
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
    return tl.dot(dscores, q, dk, input_precision="ieee"), dv


@triton.jit
def query_blocks(first_key, length, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr):
    """Where the blocks of queries that see a block of keys begin, and where those that see all of it do."""
    if CAUSAL:
        return first_key // BLOCK_Q * BLOCK_Q, min(tl.cdiv(first_key + BLOCK_K, BLOCK_Q) * BLOCK_Q, length)
    else:
        return 0, 0


@triton.jit
def backward_keys(
    q_all, k_all, v_all, dout_all, logsumexp_base, row_sum_base, dk_all, dv_all,
    heads, shared, section, length, scale_log2, scale,
    HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr,
    WIDEN: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """dK and dV of a block of keys, over the queries of all heads that share them. Grid blocks of keys * B * G.

    ``heads`` is B * G. EVEN: BLOCK_Q divides the length, so every block of queries is whole.
    """
    # Under a causal mask the first keys have most queries.
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
            dk, dv = _collect(
                dk, dv, k, v, q_all, dout_all, logsumexp_base, row_sum_base, head, keys, start, length, scale_log2,
                HEAD_DIM, BLOCK_Q, BLOCK_K, True, not EVEN, TMA, WIDEN,
            )  # fmt: skip
        for start in range(below, length, BLOCK_Q):
            dk, dv = _collect(
                dk, dv, k, v, q_all, dout_all, logsumexp_base, row_sum_base, head, keys, start, length, scale_log2,
                HEAD_DIM, BLOCK_Q, BLOCK_K, False, not EVEN, TMA, WIDEN,
            )  # fmt: skip
    store_tile(dk_all, kv_head, first, length, dk * scale, HEAD_DIM, BLOCK_K, TMA)
    store_tile(dv_all, kv_head, first, length, dv, HEAD_DIM, BLOCK_K, TMA)


@triton.jit
def _descend(
    dq, q, dout, logsumexp, row_sum, k_all, v_all, kv_head, queries, start, length, scale_log2,
    HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_K: tl.constexpr, MASKED: tl.constexpr, TMA: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Add one block of keys to dQ (without 1/sqrt(D)) of a block of queries."""
    k = load_tile(k_all, kv_head, start, length, HEAD_DIM, BLOCK_K, MASKED, TMA, WIDEN)
    v = load_tile(v_all, kv_head, start, length, HEAD_DIM, BLOCK_K, MASKED, TMA, WIDEN)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    if MASKED:
        scores = hide(scores, queries[:, None], start + tl.arange(0, BLOCK_K)[None, :], length, CAUSAL)
    weights = tl.exp2(scores - logsumexp[:, None])
    dweights = tl.dot(dout, tl.trans(v), input_precision="ieee")
    dscores = weights * (dweights - row_sum[:, None])
    return tl.dot(dscores.to(k.dtype), k, dq, input_precision="ieee")


@triton.jit
def backward_queries(
    q_all, k_all, v_all, dout_all, logsumexp_base, row_sum_base, dq_all,
    heads, shared, section, length, scale_log2, scale,
    HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """dQ of a block of queries, over all keys they see. Grid blocks of queries * B * H."""
    blocks = tl.cdiv(length, BLOCK_Q)
    rank, head = place(blocks, heads, section)
    first = (blocks - 1 - rank) * BLOCK_Q  # the longest first, as in the forward
    kv_head = head // shared
    queries = first + tl.arange(0, BLOCK_Q)
    q = load_tile(q_all, head, first, length, HEAD_DIM, BLOCK_Q, True, TMA, WIDEN)
    dout = load_tile(dout_all, head, first, length, HEAD_DIM, BLOCK_Q, True, TMA, WIDEN)
    logsumexp = load_numbers(logsumexp_base, head, queries, length, float("inf"), True)
    row_sum = load_numbers(row_sum_base, head, queries, length, 0.0, True)
    dq = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    unmasked = unmasked_keys(first, length, BLOCK_K, CAUSAL)
    for start in range(0, unmasked, BLOCK_K):
        dq = _descend(
            dq, q, dout, logsumexp, row_sum, k_all, v_all, kv_head, queries, start, length, scale_log2,
            HEAD_DIM, CAUSAL, BLOCK_K, False, TMA, WIDEN,
        )  # fmt: skip
    end = min(first + BLOCK_Q, length) if CAUSAL else length
    for start in range(unmasked, end, BLOCK_K):
        dq = _descend(
            dq, q, dout, logsumexp, row_sum, k_all, v_all, kv_head, queries, start, length, scale_log2,
            HEAD_DIM, CAUSAL, BLOCK_K, True, TMA, WIDEN,
        )  # fmt: skip
    store_tile(dq_all, head, first, length, dq * scale, HEAD_DIM, BLOCK_Q, TMA)
