"""Attention with hand-derived gradients: one autograd.Function that stores the weights P and out.

With S = Q K^T / sqrt(D), P = softmax(S), O = P V and a given dO:

    dV = P^T dO                         O is linear in V
    dP = dO V^T                         and in P
    dS = P * (dP - rowsum(dP * P))      the softmax's Jacobian is diag(p) - p p^T, row by row
    dQ = dS K / sqrt(D)
    dK = dS^T Q / sqrt(D)

Autograd over the plain operations stores six T x T tensors for this; here it is one. The row sum is computed as
rowsum(dO * O): the same number, since rowsum(dP * P) = dO . (P V), but over D columns instead of T. With grouped KV
heads, the R query heads of a KV head are R * T rows against the same keys, so dK and dV add up over them by themselves.

Letters: B batch, H query heads, G KV heads, R = H / G query heads per KV head, T length, S = R * T rows, D head size.

Source: the derivation above; the row-sum identity is Dao et al. 2022, arXiv:2205.14135, appendix B.2
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from archbench.kernels.attention import AttentionCase
from archbench.track import Call, Contender


class ManualAttention(torch.autograd.Function):
    """``apply(q_BHTD, k_BGTD, v_BGTD, causal) -> out_BHTD``; differentiable once."""

    @staticmethod
    def forward(ctx: Any, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, causal: bool) -> Tensor:
        batch, _, length, head_dim = q_BHTD.shape
        ctx.scale = 1 / math.sqrt(head_dim)
        q_BGSD = q_BHTD.reshape(batch, k_BGTD.shape[1], -1, head_dim)
        scores = (q_BGSD @ k_BGTD.transpose(-1, -2)).mul_(ctx.scale)
        if causal:
            later = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
            scores.unflatten(2, (-1, length)).masked_fill_(later, -math.inf)
        # Half precision keeps its exponent sum in float32; the weights are rounded once, after the division.
        weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
        out_BGSD = weights @ v_BGTD
        ctx.save_for_backward(q_BGSD, k_BGTD, v_BGTD, weights, out_BGSD)
        return out_BGSD.reshape(q_BHTD.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_BHTD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_BGSD, k_BGTD, v_BGTD, weights, out_BGSD = ctx.saved_tensors
        dout_BGSD = dout_BHTD.reshape(q_BGSD.shape)
        wide = torch.promote_types(weights.dtype, torch.float32)
        row_sum_BGS1 = (dout_BGSD.to(wide) * out_BGSD).sum(dim=-1, keepdim=True)
        dv_BGTD = weights.transpose(-1, -2) @ dout_BGSD
        dweights = dout_BGSD @ v_BGTD.transpose(-1, -2)
        dscores = ((dweights - row_sum_BGS1) * weights).mul_(ctx.scale).to(weights.dtype)
        dq_BHTD = (dscores @ k_BGTD).reshape(dout_BHTD.shape)
        dk_BGTD = dscores.transpose(-1, -2) @ q_BGSD
        return dq_BHTD, dk_BGTD, dv_BGTD, None


def _build(case: AttentionCase) -> Call:
    def attention(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        return ManualAttention.apply(q_BHTD, k_BGTD, v_BGTD, case.causal)

    return attention


CONTENDER: Contender[AttentionCase] = Contender(build=_build)
