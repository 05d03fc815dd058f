"""Multi-head attention from scratch: the whole score matrix, in plain tensor operations.

Scores, mask, a softmax written out and the weighted sum, each a tensor of its own. Every T x T intermediate goes
through memory several times, which is what the other contenders avoid.

Letters: B batch, H query heads, G KV heads, R = H / G query heads per KV head, T length, S = R * T rows, D head size.

Source: Vaswani et al. 2017, arXiv:1706.03762; grouped KV heads: Ainslie et al. 2023, arXiv:2305.13245
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from archbench.kernels.attention import AttentionCase
from archbench.track import Contender


def attention(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, *, causal: bool) -> Tensor:
    """``softmax(q k^T / sqrt(D)) v``; the softmax is in float32 for half precision. Returns out_BHTD."""
    heads, length, head_dim = q_BHTD.shape[1:]
    # The R query heads of a KV head are R * T rows against the same keys: one product, and no copy of K or V.
    q_BGSD = q_BHTD.reshape(q_BHTD.shape[0], k_BGTD.shape[1], -1, head_dim)
    scores = (q_BGSD @ k_BGTD.transpose(-1, -2)) / math.sqrt(head_dim)
    if causal:
        later = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.unflatten(2, (-1, length)).masked_fill(later, -math.inf).flatten(2, 3)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    exponentials = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    weights = exponentials / exponentials.sum(dim=-1, keepdim=True)
    return (weights.to(v_BGTD.dtype) @ v_BGTD).reshape(-1, heads, length, head_dim)


CONTENDER: Contender[AttentionCase] = Contender(build=lambda case: partial(attention, causal=case.causal))
