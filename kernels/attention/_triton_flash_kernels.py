"""The Triton kernels of ``triton_flash``: forward, row sums, dK/dV by blocks of keys, dQ by blocks of queries.

All tensors are contiguous: q, out, dout, dq are [B, H, T, D], k, v, dk, dv are [B, G, T, D], and the rows' logsumexp
and row_sum are float32 [B, H, T]. Scores are held in units of log 2 (``scale_log2 = log2(e) / sqrt(D)``), because
the hardware's exponential is base 2. Accumulation is in float32.

``WIDEN`` casts tiles to float32 as they are loaded: Triton's interpreter computes bfloat16 wrongly, and there only.

Source: Dao 2023, arXiv:2307.08691, algorithms 1 and 2 and section 3.1 on masked blocks
"""

from __future__ import annotations

import triton
import triton.language as tl

# Triton takes a parameter's type from its argument; only constants are annotated.
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def _load_rows(base, rows, length, HEAD_DIM: tl.constexpr, CHECK: tl.constexpr, WIDEN: tl.constexpr):
    """A [rows, D] tile of one head; rows at or beyond ``length`` are zero (``CHECK``: there may be some)."""
    at = base + rows[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tile = tl.load(at, mask=rows[:, None] < length, other=0.0) if CHECK else tl.load(at)
    return tile.to(tl.float32) if WIDEN else tile


@triton.jit
def _store_rows(base, rows, length, tile, HEAD_DIM: tl.constexpr):
    """Store the rows of a [rows, D] tile that exist, in the memory's dtype."""
    at = base + rows[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(at, tile.to(base.dtype.element_ty), mask=rows[:, None] < length)


@triton.jit
def _hide(scores, queries, keys, length, CAUSAL: tl.constexpr):
    """Minus infinity where a key does not exist or comes after its query. The two index vectors broadcast to scores."""
    seen = keys < length
    if CAUSAL:
        seen = seen & (keys <= queries)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def _unmasked_keys(first_query, length, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr):
    """Where the blocks of keys end that every query of a block sees in full."""
    return (first_query if CAUSAL else length) // BLOCK_K * BLOCK_K


@triton.jit
def _attend(
    out, highest, total, q, k_base, v_base, queries, start, length, scale_log2,
    HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_K: tl.constexpr, MASKED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One block of keys for one block of queries: the new unnormalised output, row maximum and row sum."""
    keys = start + tl.arange(0, BLOCK_K)
    k = _load_rows(k_base, keys, length, HEAD_DIM, MASKED, WIDEN)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    if MASKED:
        scores = _hide(scores, queries[:, None], keys[None, :], length, CAUSAL)
    # Finite from the first block on: every query sees key 0.
    after = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp2(scores - after[:, None])
    shrink = tl.exp2(highest - after)
    v = _load_rows(v_base, keys, length, HEAD_DIM, MASKED, WIDEN)
    out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision="ieee")
    return out, after, total * shrink + tl.sum(weights, 1)


@triton.jit
def forward(
    q_base, k_base, v_base, out_base, logsumexp_base, shared, length, scale_log2,
    HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of queries, B * H). ``shared`` query heads use one KV head."""
    # Under a causal mask the last block has most to do: it starts first, so that none is left alone at the end.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)  # offsets may pass 2**31
    kv_head = head // shared  # H = G * shared, so the batch index comes out right, too
    q_base += head * length * HEAD_DIM
    k_base += kv_head * length * HEAD_DIM
    v_base += kv_head * length * HEAD_DIM
    first = block * BLOCK_Q
    queries = first + tl.arange(0, BLOCK_Q)
    q = _load_rows(q_base, queries, length, HEAD_DIM, True, WIDEN)
    out = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    highest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    unmasked = _unmasked_keys(first, length, BLOCK_K, CAUSAL)
    for start in range(0, unmasked, BLOCK_K):
        out, highest, total = _attend(
            out, highest, total, q, k_base, v_base, queries, start, length, scale_log2,
            HEAD_DIM, CAUSAL, BLOCK_K, False, WIDEN,
        )  # fmt: skip
    end = min(first + BLOCK_Q, length) if CAUSAL else length
    for start in range(unmasked, end, BLOCK_K):
        out, highest, total = _attend(
            out, highest, total, q, k_base, v_base, queries, start, length, scale_log2,
            HEAD_DIM, CAUSAL, BLOCK_K, True, WIDEN,
        )  # fmt: skip
    _store_rows(out_base + head * length * HEAD_DIM, queries, length, out / total[:, None], HEAD_DIM)
    tl.store(logsumexp_base + head * length + queries, highest + tl.log2(total), mask=queries < length)


@triton.jit
def row_sums(out_base, dout_base, row_sum_base, length, HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr):
    """rowsum(dO * O) of a block of queries. Grid (blocks of queries, B * H)."""
    head = tl.program_id(1).to(tl.int64)
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    out = _load_rows(out_base + head * length * HEAD_DIM, queries, length, HEAD_DIM, True, True)
    dout = _load_rows(dout_base + head * length * HEAD_DIM, queries, length, HEAD_DIM, True, True)
    tl.store(row_sum_base + head * length + queries, tl.sum(out * dout, 1), mask=queries < length)


@triton.jit
def _collect(
    dk, dv, k, v, q_base, dout_base, logsumexp_base, row_sum_base, keys, start, length, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, DIAGONAL: tl.constexpr, CHECK: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Add one block of queries to dK (without 1/sqrt(D)) and dV of a block of keys. Tiles are [keys, queries]."""
    queries = start + tl.arange(0, BLOCK_Q)
    q = _load_rows(q_base, queries, length, HEAD_DIM, CHECK, WIDEN)
    dout = _load_rows(dout_base, queries, length, HEAD_DIM, CHECK, WIDEN)
    # A query that does not exist gets the logsumexp +inf, so its weights are zero: no mask needed on the tile.
    exists = queries < length
    logsumexp = tl.load(logsumexp_base + queries, mask=exists, other=float("inf"))
    row_sum = tl.load(row_sum_base + queries, mask=exists, other=0.0)
    scores = tl.dot(k, tl.trans(q), input_precision="ieee") * scale_log2
    if DIAGONAL:
        scores = _hide(scores, queries[None, :], keys[:, None], length, True)
    weights = tl.exp2(scores - logsumexp[None, :])
    dv = tl.dot(weights.to(dout.dtype), dout, dv, input_precision="ieee")
    dweights = tl.dot(v, tl.trans(dout), input_precision="ieee")
    dscores = weights * (dweights - row_sum[None, :])
    return tl.dot(dscores.to(q.dtype), q, dk, input_precision="ieee"), dv


@triton.jit
def backward_keys(
    q_base, k_base, v_base, dout_base, logsumexp_base, row_sum_base, dk_base, dv_base,
    shared, length, scale_log2, scale,
    HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WIDEN: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """dK and dV of a block of keys, over all queries of all heads that share them. Grid (blocks of keys, B * G)."""
    kv_head = tl.program_id(1).to(tl.int64)
    # Under a causal mask the first keys have most queries: they start first as it is.
    first = tl.program_id(0) * BLOCK_K
    keys = first + tl.arange(0, BLOCK_K)
    k = _load_rows(k_base + kv_head * length * HEAD_DIM, keys, length, HEAD_DIM, True, WIDEN)
    v = _load_rows(v_base + kv_head * length * HEAD_DIM, keys, length, HEAD_DIM, True, WIDEN)
    dk = tl.zeros([BLOCK_K, HEAD_DIM], tl.float32)
    dv = tl.zeros([BLOCK_K, HEAD_DIM], tl.float32)
    # Blocks of queries that cross the diagonal, then those below it. EVEN: BLOCK_Q divides the length, all are whole.
    diagonal = first // BLOCK_Q * BLOCK_Q if CAUSAL else 0
    below = tl.cdiv(first + BLOCK_K, BLOCK_Q) * BLOCK_Q if CAUSAL else 0
    for member in range(shared):
        row = (kv_head * shared + member) * length
        for start in range(diagonal, min(below, length), BLOCK_Q):
            dk, dv = _collect(
                dk, dv, k, v, q_base + row * HEAD_DIM, dout_base + row * HEAD_DIM,
                logsumexp_base + row, row_sum_base + row, keys, start, length, scale_log2,
                HEAD_DIM, BLOCK_Q, True, not EVEN, WIDEN,
            )  # fmt: skip
        for start in range(below, length, BLOCK_Q):
            dk, dv = _collect(
                dk, dv, k, v, q_base + row * HEAD_DIM, dout_base + row * HEAD_DIM,
                logsumexp_base + row, row_sum_base + row, keys, start, length, scale_log2,
                HEAD_DIM, BLOCK_Q, False, not EVEN, WIDEN,
            )  # fmt: skip
    _store_rows(dk_base + kv_head * length * HEAD_DIM, keys, length, dk * scale, HEAD_DIM)
    _store_rows(dv_base + kv_head * length * HEAD_DIM, keys, length, dv, HEAD_DIM)


@triton.jit
def _descend(
    dq, q, dout, logsumexp, row_sum, k_base, v_base, queries, start, length, scale_log2,
    HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_K: tl.constexpr, MASKED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Add one block of keys to dQ (without 1/sqrt(D)) of a block of queries."""
    keys = start + tl.arange(0, BLOCK_K)
    k = _load_rows(k_base, keys, length, HEAD_DIM, MASKED, WIDEN)
    v = _load_rows(v_base, keys, length, HEAD_DIM, MASKED, WIDEN)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    if MASKED:
        scores = _hide(scores, queries[:, None], keys[None, :], length, CAUSAL)
    weights = tl.exp2(scores - logsumexp[:, None])
    dweights = tl.dot(dout, tl.trans(v), input_precision="ieee")
    dscores = weights * (dweights - row_sum[:, None])
    return tl.dot(dscores.to(k.dtype), k, dq, input_precision="ieee")


@triton.jit
def backward_queries(
    q_base, k_base, v_base, dout_base, logsumexp_base, row_sum_base, dq_base,
    shared, length, scale_log2, scale,
    HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """dQ of a block of queries, over all keys they see. Grid (blocks of queries, B * H)."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first, as in the forward
    head = tl.program_id(1).to(tl.int64)
    kv_head = head // shared
    k_base += kv_head * length * HEAD_DIM
    v_base += kv_head * length * HEAD_DIM
    first = block * BLOCK_Q
    queries = first + tl.arange(0, BLOCK_Q)
    q = _load_rows(q_base + head * length * HEAD_DIM, queries, length, HEAD_DIM, True, WIDEN)
    dout = _load_rows(dout_base + head * length * HEAD_DIM, queries, length, HEAD_DIM, True, WIDEN)
    exists = queries < length
    logsumexp = tl.load(logsumexp_base + head * length + queries, mask=exists, other=float("inf"))
    row_sum = tl.load(row_sum_base + head * length + queries, mask=exists, other=0.0)
    dq = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    unmasked = _unmasked_keys(first, length, BLOCK_K, CAUSAL)
    for start in range(0, unmasked, BLOCK_K):
        dq = _descend(
            dq, q, dout, logsumexp, row_sum, k_base, v_base, queries, start, length, scale_log2,
            HEAD_DIM, CAUSAL, BLOCK_K, False, WIDEN,
        )  # fmt: skip
    end = min(first + BLOCK_Q, length) if CAUSAL else length
    for start in range(unmasked, end, BLOCK_K):
        dq = _descend(
            dq, q, dout, logsumexp, row_sum, k_base, v_base, queries, start, length, scale_log2,
            HEAD_DIM, CAUSAL, BLOCK_K, True, WIDEN,
        )  # fmt: skip
    _store_rows(dq_base + head * length * HEAD_DIM, queries, length, dq * scale, HEAD_DIM)
