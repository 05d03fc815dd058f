"""Normalization with hand-derived gradients: one autograd.Function and one formula for every kind.

A kind is a way to see x so that the elements which share their statistics lie along some dimensions; everything else is
the same. With n = (x - mean) / deviation, y = w n + b and a given dy, let g = w dy:

    dw = sum of dy n, db = sum of dy                  over all elements a weight meets
    dx = (g - mean(g) - n mean(g n)) / deviation      the means over the set

The deviation depends on x through the variance, which gives the third term, and the mean does, which gives the second.
Root mean square has no mean, so the second is not there; given statistics do not move, so neither is. The forward saves
x and two numbers per set instead of n, which is as large as x: n is one subtraction and one product away.

Source: the derivation above; Ioffe & Szegedy 2015, arXiv:1502.03167, section 3
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from archbench.kernels.norm import EPS, MOMENTUM, NormCase
from archbench.kernels.norm._workload import per_channel, sets_of
from archbench.track import Call, Contender


@dataclass(frozen=True)
class Kind:
    """What of a case the formula depends on."""

    case: NormCase
    moves: bool  # the statistics depend on x
    centred: bool  # a mean is subtracted

    def learned_dims(self, x: Tensor) -> tuple[int, ...]:
        """Dimensions of x which share a weight."""
        return (0, 1) if x.dim() == 3 else (0, 2, 3)


def normalised(kind: Kind, x: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """n in the dtype of the statistics and the shape of x."""
    seen = sets_of(kind.case, x.to(inverse.dtype))[0]
    return ((seen - mean) * inverse).reshape(x.shape)


class ManualNorm(torch.autograd.Function):
    """``apply(kind, x, weight, bias, mean, inverse) -> y``; the statistics are constants to autograd, not to dx."""

    @staticmethod
    def forward(
        ctx: Any, kind: Kind, x: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor, inverse: Tensor
    ) -> Tensor:
        y = normalised(kind, x, mean, inverse).mul_(per_channel(kind.case, weight))
        if bias is not None:
            y += per_channel(kind.case, bias)
        ctx.kind = kind
        ctx.save_for_backward(x, weight, mean, inverse)
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        kind: Kind = ctx.kind
        x, weight, mean, inverse = ctx.saved_tensors
        n, dy = normalised(kind, x, mean, inverse), dy.to(inverse.dtype)
        dweight, dbias = (dy * n).sum(kind.learned_dims(x)), dy.sum(kind.learned_dims(x))
        g, dims = sets_of(kind.case, dy * per_channel(kind.case, weight))
        n = sets_of(kind.case, n)[0]
        if kind.moves:
            tilt = (g * n).mean(dims, keepdim=True)
            g = g - g.mean(dims, keepdim=True) if kind.centred else g
            g = g - n * tilt
        dx = (g * inverse).reshape(x.shape).to(x.dtype)
        return None, dx, dweight, dbias if kind.centred else None, None, None


def _normalise(
    kind: Kind,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
) -> Any:
    case = kind.case
    with torch.no_grad():
        seen, dims = sets_of(case, x.to(weight.dtype))
        if kind.moves:
            mean = seen.mean(dims, keepdim=True) if kind.centred else torch.zeros_like(weight[:1])
            var = (seen - mean).square().mean(dims, keepdim=True)
        else:
            mean, var = (per_channel(case, one) for one in (running_mean, running_var))
        inverse = (var + EPS).rsqrt()
    y = ManualNorm.apply(kind, x, weight, bias, mean, inverse)
    if running_mean is None or running_var is None or not kind.moves:
        return y
    count = x.numel() // case.channels
    unbiased = var.flatten() * (count / (count - 1))
    return y, running_mean.lerp(mean.flatten(), MOMENTUM), running_var.lerp(unbiased, MOMENTUM)


def _build(case: NormCase) -> Call:
    return partial(_normalise, Kind(case, moves=case.kind != "batch_eval", centred=case.kind != "rms"))


CONTENDER: Contender[NormCase] = Contender(build=_build)
