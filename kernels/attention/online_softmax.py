"""Attention in one pass over blocks of keys, PyTorch only: the T x T score matrix never exists.

Each row keeps a running maximum m, a running sum l of exp(score - m) and the output so far; a new block rescales both
by exp(old m - new m). Only m + log(l) is kept for the backward, which recomputes a block's weights from it as
exp(score - (m + log l)) and needs no second normalisation. Memory is O(T x BLOCK) in both directions. This is the
algorithm of the fused kernels without the fusion: it shows what the algorithm alone is worth.

Letters: B batch, H query heads, G KV heads, R = H / G query heads per KV head, T length, D head size, C keys of a
block.

Source: Milakov & Gimelshein 2018, arXiv:1805.02867; the backward is Dao et al. 2022, arXiv:2205.14135, algorithm 4
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from archbench.kernels.attention import AttentionCase
from archbench.track import Call, Contender

BLOCK = 128  # keys per step


def _blocks(length: int, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Key blocks with the query rows that see any of their keys: under a causal mask, the rows from the block on."""
    for start in range(0, length, BLOCK):
        yield slice(start, min(start + BLOCK, length)), slice(start if causal else 0, length)


def _scores(q_BGRTD: Tensor, k_BGTD: Tensor, keys: slice, rows: slice, causal: bool) -> Tensor:
    """Scaled, masked scores_BGRTC of the rows against the keys of a block, at least in float32."""
    k_BG1DC = k_BGTD[:, :, None, keys].transpose(-1, -2)
    scores = q_BGRTD[..., rows, :] @ k_BG1DC
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / math.sqrt(q_BGRTD.shape[-1])
    if causal:
        # Only the block's own rows cross the diagonal; they come first.
        width = keys.stop - keys.start
        later = torch.ones(width, width, dtype=torch.bool, device=scores.device).triu(1)
        scores[..., :width, :].masked_fill_(later, -math.inf)
    return scores


class OnlineAttention(torch.autograd.Function):
    """``apply(q_BHTD, k_BGTD, v_BGTD, causal) -> out_BHTD``; differentiable once."""

    @staticmethod
    def forward(ctx: Any, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, causal: bool) -> Tensor:
        q_BGRTD = q_BHTD.unflatten(1, (k_BGTD.shape[1], -1))
        wide = torch.promote_types(q_BHTD.dtype, torch.float32)
        out_BGRTD = torch.zeros_like(q_BGRTD, dtype=wide)
        highest_BGRT1 = torch.full_like(out_BGRTD[..., :1], -math.inf)
        total_BGRT1 = torch.zeros_like(highest_BGRT1)
        for keys, rows in _blocks(q_BHTD.shape[-2], causal):
            scores = _scores(q_BGRTD, k_BGTD, keys, rows, causal)
            # Every row of `rows` sees at least one key of every block so far, so the maximum is finite.
            before = highest_BGRT1[..., rows, :]
            after = torch.maximum(before, scores.amax(dim=-1, keepdim=True))
            shrink = (before - after).exp()
            weights = scores.sub_(after).exp_()
            total_BGRT1[..., rows, :] = total_BGRT1[..., rows, :] * shrink + weights.sum(dim=-1, keepdim=True)
            weighted = weights.to(v_BGTD.dtype) @ v_BGTD[:, :, None, keys]
            out_BGRTD[..., rows, :] = out_BGRTD[..., rows, :] * shrink + weighted
            highest_BGRT1[..., rows, :] = after
        out_BHTD = (out_BGRTD / total_BGRT1).to(q_BHTD.dtype).flatten(1, 2)
        ctx.causal = causal
        ctx.save_for_backward(q_BGRTD, k_BGTD, v_BGTD, out_BHTD, highest_BGRT1 + total_BGRT1.log())
        return out_BHTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_BHTD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_BGRTD, k_BGTD, v_BGTD, out_BHTD, logsumexp_BGRT1 = ctx.saved_tensors
        dtype, groups = q_BGRTD.dtype, q_BGRTD.shape[1:3]
        dout_BGRTD = dout_BHTD.unflatten(1, groups)
        wide = logsumexp_BGRT1.dtype
        row_sum_BGRT1 = (dout_BHTD.to(wide) * out_BHTD).sum(dim=-1, keepdim=True).unflatten(1, groups)
        dq_BGRTD = torch.zeros_like(q_BGRTD, dtype=wide)
        dk_BGTD, dv_BGTD = torch.empty_like(k_BGTD), torch.empty_like(v_BGTD)
        for keys, rows in _blocks(q_BGRTD.shape[-2], ctx.causal):
            scores = _scores(q_BGRTD, k_BGTD, keys, rows, ctx.causal)
            weights = scores.sub_(logsumexp_BGRT1[..., rows, :]).exp_()
            dout_BGRCD = dout_BGRTD[..., rows, :]
            dv_BGTD[:, :, keys] = (weights.to(dtype).transpose(-1, -2) @ dout_BGRCD).sum(dim=2)
            dweights = dout_BGRCD @ v_BGTD[:, :, None, keys].transpose(-1, -2)
            dscores = (weights * (dweights - row_sum_BGRT1[..., rows, :])).div_(math.sqrt(q_BGRTD.shape[-1])).to(dtype)
            dq_BGRTD[..., rows, :] += dscores @ k_BGTD[:, :, None, keys]
            dk_BGTD[:, :, keys] = (dscores.transpose(-1, -2) @ q_BGRTD[..., rows, :]).sum(dim=2)
        return dq_BGRTD.to(dtype).flatten(1, 2), dk_BGTD, dv_BGTD, None


def _build(case: AttentionCase) -> Call:
    def attention(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        return OnlineAttention.apply(q_BHTD, k_BGTD, v_BGTD, case.causal)

    return attention


CONTENDER: Contender[AttentionCase] = Contender(build=_build)
