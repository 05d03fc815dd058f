"""torch.nn.functional's batch_norm, layer_norm, instance_norm, group_norm and rms_norm as they come. The baseline.

What nn.BatchNorm2d, nn.LayerNorm and the others call. batch_norm updates its running statistics in place, so it gets
copies of them: 2 C numbers, and what it leaves in them is the answer.

Source: https://docs.pytorch.org/docs/stable/nn.functional.html
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from archbench.kernels.norm import EPS, MOMENTUM, NormCase
from archbench.track import Call, Contender


def _batch_train(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = running_mean.clone(), running_var.clone()
    return F.batch_norm(x, mean, var, weight, bias, training=True, momentum=MOMENTUM, eps=EPS), mean, var


def _batch_eval(x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    return F.batch_norm(x, running_mean, running_var, weight, bias, training=False, eps=EPS)


def _instance(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=weight, bias=bias, eps=EPS)


def _group(groups: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, groups, weight, bias, EPS)


def _layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.is_cuda:  # there torch's kernel takes one dtype only, and keeps its statistics in float32 itself
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    return F.layer_norm(x, weight.shape, weight, bias, EPS)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), EPS)  # of two dtypes, it would warn and not fuse


def _build(case: NormCase) -> Call:
    if case.groups is not None:
        return partial(_group, case.groups)
    calls: dict[str, Call] = {
        "batch_train": _batch_train,
        "batch_eval": _batch_eval,
        "layer": _layer,
        "instance": _instance,
        "rms": _rms,
    }
    return calls[case.kind]


CONTENDER: Contender[NormCase] = Contender(build=_build, family="torch")
