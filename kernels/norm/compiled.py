"""torch.compile over the plain formula: mean, variance, normalise, scale and shift, fused as the compiler sees fit.

The statistics are formed in float32 for bf16, as every implementation here does; the formula has nothing else to say
about precision, order or layout. What the compiler fuses, whether it forms the variance in one pass, and what it saves
for the backward is its choice, and part of the question.

Source: Ansel et al. 2024, doi:10.1145/3620665.3640366
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from archbench.kernels.norm import EPS, MOMENTUM, NormCase
from archbench.kernels.norm._workload import per_channel, sets_of
from archbench.track import Call, Contender


def _affine(case: NormCase, n: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (n.reshape(x.shape) * per_channel(case, weight) + per_channel(case, bias)).to(x.dtype)


def _own_statistics(case: NormCase, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, and mean and biased variance of the sets."""
    seen, dims = sets_of(case, x.to(weight.dtype))
    var, mean = torch.var_mean(seen, dims, correction=0, keepdim=True)
    return _affine(case, (seen - mean) * (var + EPS).rsqrt(), x, weight, bias), mean, var


def _moving(case: NormCase, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _own_statistics(case, x, weight, bias)[0]


def _batch_train(
    case: NormCase, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, var = _own_statistics(case, x, weight, bias)
    count = x.numel() // case.channels
    unbiased = var.detach().flatten() * (count / (count - 1))
    return y, running_mean.lerp(mean.detach().flatten(), MOMENTUM), running_var.lerp(unbiased, MOMENTUM)


def _batch_eval(
    case: NormCase, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor
) -> Tensor:
    inverse = (running_var + EPS).rsqrt()
    n = (x.to(weight.dtype) - per_channel(case, running_mean)) * per_channel(case, inverse)
    return _affine(case, n, x, weight, bias)


def _rms(case: NormCase, x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(weight.dtype)
    return (wide * (wide.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight).to(x.dtype)


FORMULAS: dict[str, Any] = {"batch_train": _batch_train, "batch_eval": _batch_eval, "rms": _rms}


def _build(case: NormCase) -> Call:
    # Every case is compiled alone and for its own shapes, in a process that asks many as in one that asks a single one.
    torch.compiler.reset()
    return torch.compile(partial(FORMULAS.get(case.kind, _moving), case), fullgraph=True, dynamic=False)


CONTENDER: Contender[NormCase] = Contender(build=_build, family="compiler")
