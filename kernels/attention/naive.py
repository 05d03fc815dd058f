"""Multi-head attention from scratch: the whole score matrix, in plain tensor operations.

Scores, mask, a softmax written out and the weighted sum, each a tensor of its own. Every T x T intermediate goes through
memory several times, which is what the other contenders avoid.

Letters: B batch, H query heads, G KV heads, R = H / G query heads per KV head, T length, D head size.

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
    length, head_dim = q_BHTD.shape[-2:]
    # Splitting H into G x R lets K and V broadcast over R instead of being repeated.
    q_BGRTD = q_BHTD.unflatten(1, (k_BGTD.shape[1], -1))
    k_BG1TD, v_BG1TD = k_BGTD.unsqueeze(2), v_BGTD.unsqueeze(2)
    scores = (q_BGRTD @ k_BG1TD.transpose(-1, -2)) / math.sqrt(head_dim)
    if causal:
        later = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    exponentials = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    weights = exponentials / exponentials.sum(dim=-1, keepdim=True)
    return (weights.to(v_BGTD.dtype) @ v_BG1TD).flatten(1, 2)


CONTENDER: Contender[AttentionCase] = Contender(build=lambda case: partial(attention, causal=case.causal))
