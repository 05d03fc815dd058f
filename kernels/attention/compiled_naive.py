"""torch.compile over the plain formula: scores, mask, softmax and weighted sum, fused as the compiler sees fit.

The formula is written with torch's own softmax, as a model would have it. Inductor knows some spellings of attention
and replaces them by a call of scaled_dot_product_attention: without a mask it recognises this one (torch 2.13), with
the causal mask it fuses mask, scale and softmax between two products. Which it does is the compiler's choice, and part
of the question.

Letters: B batch, H query heads, G KV heads, R = H / G query heads per KV head, T length, S = R * T rows, D head size.

Source: Ansel et al. 2024, doi:10.1145/3620665.3640366
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from archbench.kernels.attention import AttentionCase
from archbench.track import Call, Contender


def _attention(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, *, causal: bool) -> Tensor:
    length, head_dim = q_BHTD.shape[-2:]
    q_BGSD = q_BHTD.reshape(q_BHTD.shape[0], k_BGTD.shape[1], -1, head_dim)
    scores = (q_BGSD @ k_BGTD.transpose(-1, -2)) / math.sqrt(head_dim)
    if causal:
        later = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.unflatten(2, (-1, length)).masked_fill(later, -math.inf).flatten(2, 3)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return (weights.to(v_BGTD.dtype) @ v_BGTD).reshape(q_BHTD.shape)


def _build(case: AttentionCase) -> Call:
    # Every case is compiled alone and for its own shapes, in a process that asks many as in one that asks a single one.
    torch.compiler.reset()
    return torch.compile(partial(_attention, causal=case.causal), fullgraph=True, dynamic=False)


CONTENDER: Contender[AttentionCase] = Contender(build=_build, family="compiler")
