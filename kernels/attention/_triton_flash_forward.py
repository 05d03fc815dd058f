"""The forward kernel of ``triton_flash``.

q and out are [B * H, T, D], k and v [B * G, T, D], the rows' logsumexp is float32 [B * H, T]. Scores are held in units
of log 2 (``scale_log2 = log2(e) / sqrt(D)``), because the hardware's exponential is base 2; the scale is folded into
the one multiply-add that subtracts the maximum. Accumulation is in float32.

Source: Dao 2023, arXiv:2307.08691, algorithm 1 and section 3.1 on masked blocks
"""

from __future__ import annotations

import triton
import triton.language as tl

from archbench.kernels.attention._triton_flash_tiles import hide, load_tile, place, store_tile, unmasked_keys

# mypy: disable-error-code="no-untyped-def"


@triton.jit
def _attend(
    out, highest, total, q, k_all, v_all, kv_head, queries, start, length, scale_log2,
    HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_K: tl.constexpr, MASKED: tl.constexpr, TMA: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """One block of keys for one block of queries: the new unnormalised output, row maximum and row sum."""
    k = load_tile(k_all, kv_head, start, length, HEAD_DIM, BLOCK_K, MASKED, TMA, WIDEN)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        scores = hide(scores, queries[:, None], start + tl.arange(0, BLOCK_K)[None, :], length, CAUSAL)
    # Finite from the first block on: every query sees key 0.
    after = tl.maximum(highest, tl.max(scores, 1) * scale_log2)
    weights = tl.exp2(scores * scale_log2 - after[:, None])
    shrink = tl.exp2(highest - after)
    v = load_tile(v_all, kv_head, start, length, HEAD_DIM, BLOCK_K, MASKED, TMA, WIDEN)
    out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision="ieee")
    return out, after, total * shrink + tl.sum(weights, 1)


@triton.jit
def forward(
    q_all, k_all, v_all, out_all, logsumexp_base, heads, shared, section, length, scale_log2,
    HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Grid blocks of queries * B * H. ``shared`` query heads use one KV head."""
    blocks = tl.cdiv(length, BLOCK_Q)
    rank, head = place(blocks, heads, section)
    first = (blocks - 1 - rank) * BLOCK_Q  # under a causal mask the last block has most to do
    kv_head = head // shared  # H = G * shared, so the batch index comes out right, too
    queries = first + tl.arange(0, BLOCK_Q)
    q = load_tile(q_all, head, first, length, HEAD_DIM, BLOCK_Q, True, TMA, WIDEN)
    out = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    highest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    unmasked = unmasked_keys(first, length, BLOCK_K, CAUSAL)
    for start in range(0, unmasked, BLOCK_K):
        out, highest, total = _attend(
            out, highest, total, q, k_all, v_all, kv_head, queries, start, length, scale_log2,
            HEAD_DIM, CAUSAL, BLOCK_K, False, TMA, WIDEN,
        )  # fmt: skip
    end = min(first + BLOCK_Q, length) if CAUSAL else length
    for start in range(unmasked, end, BLOCK_K):
        out, highest, total = _attend(
            out, highest, total, q, k_all, v_all, kv_head, queries, start, length, scale_log2,
            HEAD_DIM, CAUSAL, BLOCK_K, True, TMA, WIDEN,
        )  # fmt: skip
    store_tile(out_all, head, first, length, out / total[:, None], HEAD_DIM, BLOCK_Q, TMA)
    tl.store(logsumexp_base + head * length + queries, highest + tl.log2(total), mask=queries < length)
