"""Inputs, workload, float64 reference and gate of the norm track.

The reference is the definition, literally, in float64, and autograd derives its gradients. The gate holds every element
to a bound of its own: what rounding may do to it follows from the condition of its statistics, |mean| / sqrt(variance +
EPS). A bound fit for the worst set would not see a biased variance in the others.

Letters: N images, C channels, H height, W width, G groups; B sequences, T tokens, D features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archbench.checks import Array, Wrong, flatten, like, to_float64
from archbench.kernels.norm import EPS, MOMENTUM, NormCase
from archbench.track import Call, Device

TORCH_DTYPE = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
PARAMETER_DTYPE = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.float32}

# One statistic in five has this mean and a standard deviation of 1. bf16 numbers near 1000 are 4 apart: there, 16.
LARGE_MEAN = {"fp64": 1000.0, "fp32": 1000.0, "bf16": 16.0}
TINY_DEVIATION = 1e-3  # of another one in five, around 0: the variance is a tenth of EPS


def sets_of(case: NormCase, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """x seen so that the elements which share their statistics lie along the given dimensions."""
    if case.kind == "group":
        return x.unflatten(1, (case.groups, -1)), (2, 3, 4)
    if len(case.shape) == 3:
        return x, (2,)
    return x, (2, 3) if case.kind == "instance" else (0, 2, 3)


def per_channel(case: NormCase, vector: Tensor) -> Tensor:
    """weight, bias and the like, seen so that they meet their elements of x."""
    return vector if len(case.shape) == 3 else vector[:, None, None]


def make_inputs(case: NormCase, seed: int, device: Device) -> tuple[Tensor, ...]:
    """x, weight, bias where there is one, the running statistics where there are some, dy where there is a backward.

    Drawn on the CPU, so that the same seed asks the same question on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    wide = PARAMETER_DTYPE[case.dtype]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=wide)

    def placed(tensor: Tensor) -> Tensor:
        layout = torch.channels_last if case.channels_last and tensor.dim() == 4 else torch.contiguous_format
        dtype = wide if tensor.dim() == 1 else TORCH_DTYPE[case.dtype]
        return tensor.to(device=device, dtype=dtype).contiguous(memory_format=layout)

    x = normal(*case.shape)
    seen, dims = sets_of(case, x)
    per_set = [1 if i in dims else size for i, size in enumerate(seen.shape)]
    mean, deviation = normal(*per_set), (0.5 * normal(*per_set)).exp()
    mean.view(-1)[1::5], deviation.view(-1)[1::5] = LARGE_MEAN[case.dtype], 1.0
    mean.view(-1)[3::5], deviation.view(-1)[3::5] = 0.0, TINY_DEVIATION
    x = (seen * deviation + mean).reshape(case.shape)
    weight = 1 + 0.25 * normal(case.channels)
    given = [x, weight] + ([normal(case.channels)] if case.bias else [])
    if case.running:
        spread = deviation.view(-1)
        given += [
            mean.view(-1) + 0.1 * spread * normal(case.channels),
            spread**2 * normal(case.channels).abs().add(0.5),
        ]
    given += [normal(*case.shape)] if case.backward else []
    return tuple(map(placed, given))


def workload(case: NormCase, call: Call) -> Call:
    """``call`` without gradients, or followed by the gradients of x, weight and bias for the last input, dy."""

    def forward(*inputs: Tensor) -> Any:
        with torch.no_grad():
            return call(*inputs)

    def forward_backward(*inputs: Tensor) -> Any:
        *given, dy = inputs
        learned = 3 if case.bias else 2
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in given[:learned]]
            answer = call(*leaves, *given[learned:])
            y, *statistics = answer if isinstance(answer, tuple) else (answer,)
            return (y.detach(), *statistics, *torch.autograd.grad(y, leaves, dy))

    return forward_backward if case.backward else forward


def names(case: NormCase) -> tuple[str, ...]:
    """What the workload returns, in its order."""
    statistics = ("running_mean", "running_var") if case.kind == "batch_train" else ()
    gradients = ("dx", "dweight", "dbias")[: 3 if case.bias else 2] if case.backward else ()
    return ("y", *statistics, *gradients)


@dataclass(frozen=True)
class Statistics:
    """Of every set, in float64, with as many dimensions as ``sets_of`` gives x."""

    mean: Tensor
    var: Tensor

    @property
    def deviation(self) -> Tensor:
        return (self.var + EPS).sqrt()


def statistics(case: NormCase, x: Tensor, running: tuple[Tensor, ...]) -> Statistics:
    """Mean and biased variance of x's sets; the given ones for ``batch_eval``; for ``rms`` a mean of zero."""
    seen, dims = sets_of(case, x)
    if case.kind == "batch_eval":
        return Statistics(*(per_channel(case, one) for one in running))
    mean = torch.zeros(()).to(x) if case.kind == "rms" else seen.mean(dims, keepdim=True)
    return Statistics(mean, ((seen - mean) ** 2).mean(dims, keepdim=True))


def definition(case: NormCase, *given: Tensor) -> Tensor:
    """y, for autograd to differentiate."""
    x, weight = given[:2]
    seen, _ = sets_of(case, x)
    of = statistics(case, x, given[3:])
    y = ((seen - of.mean) / of.deviation).reshape(case.shape) * per_channel(case, weight)
    return y + per_channel(case, given[2]) if case.bias else y


def reference(case: NormCase, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Float64 outputs in the order of ``names``, on the device of the inputs."""
    answer = workload(case, lambda *given: definition(case, *given))(*(tensor.double() for tensor in inputs))
    y, *gradients = answer if case.backward else (answer,)
    if case.kind != "batch_train":
        return (y, *gradients)
    x, running_mean, running_var = (inputs[i].double() for i in (0, 3, 4))
    of, count = statistics(case, x, ()), x.numel() // case.channels
    new_mean = (1 - MOMENTUM) * running_mean + MOMENTUM * of.mean.flatten()
    new_var = (1 - MOMENTUM) * running_var + MOMENTUM * of.var.flatten() * count / (count - 1)
    return (y, new_mean, new_var, *gradients)


# Units of error, the spacing of numbers at 1: of y and dx, and of the arithmetic, statistics and parameters. float64 is
# given more: nothing wider is there to form its sums in, and whoever forgot a cast to float32 is far outside anyway.
RESULT_EPS = {"fp64": 2.0**-52, "fp32": 2.0**-23, "bf16": 2.0**-7}
SUM_EPS = {"fp64": 2.0**-46, "fp32": 2.0**-23, "bf16": 2.0**-23}

# - A result rounds its terms and itself: in bf16 the normalised value, its product with the weight, and the sum, half a
#   spacing each. Two spacings of the terms' magnitudes bound that.
# - A mean in single precision is off by half a spacing of itself, and the normalised values by that over their
#   deviation: the condition. weight / deviation * x + (bias - ...) rounds three numbers of that size. Eight spacings.
# - Sums are long: a set's statistics, and the gradients of weight and bias over a channel. Added one after another,
#   single precision is off by sqrt(terms) / 3 spacings of the largest partial sum, at worst: of terms of both signs
#   that is the sum's standard deviation or what it comes to, whichever is more; of squares it is the sum itself.
ROUNDINGS, CONDITIONED = 2.0, 8.0


def one_by_one(terms: float) -> float:
    """How much larger than a rounding the error of a sum of so many terms may be, in units of ``CONDITIONED``."""
    return 1 + math.sqrt(terms) / 16


def bounds(case: NormCase, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The largest error of each element of each output, in the order of ``names`` and the shape of the reference."""
    x, weight = (tensor.double() for tensor in inputs[:2])
    running = tuple(tensor.double() for tensor in inputs[3:5]) if case.running else ()
    result, sums = ROUNDINGS * RESULT_EPS[case.dtype], CONDITIONED * SUM_EPS[case.dtype]
    seen, dims = sets_of(case, x)
    of = statistics(case, x, running)
    condition = 1 + of.mean.abs() / of.deviation
    long = one_by_one(seen.numel() / of.var.numel())
    normal = (seen - of.mean) / of.deviation
    w = per_channel(case, weight).abs()
    off = sums * (condition + (long - 1) * normal.abs())  # a mean's error, and a variance's: it grows with the distance
    y = result * w * normal.abs().reshape(case.shape) + w * off.reshape(case.shape)
    found = [y + result * per_channel(case, inputs[2].double()).abs() if case.bias else y]
    if case.kind == "batch_train":
        found += [sums * (running[0].abs() + (of.mean.abs() + long * of.var.sqrt()).flatten())]
        found += [sums * (running[1] + long * (of.var * condition).flatten())]
    if case.backward:
        dy = inputs[-1].double()
        slope = sets_of(case, dy * per_channel(case, weight))[0]
        moves = case.kind != "batch_eval"  # given statistics do not move with x: dx is the slope alone
        offset = slope.mean(dims, keepdim=True) * (moves and case.kind != "rms")
        tilt = (slope * normal).mean(dims, keepdim=True) * moves
        typical = slope.square().mean(dims, keepdim=True).sqrt() * moves
        reach = typical * (1 + normal.abs())
        # Products that are rounded before they are summed leave 1 / sqrt(count) of a rounding in a mean.
        terms = slope.abs() + offset.abs() + (normal * tilt).abs() + reach / math.sqrt(seen.numel() / of.var.numel())
        dx = (result * terms + sums * long * condition * (terms + reach)) / of.deviation
        found += [dx.reshape(case.shape), *_bounds_of_sums(case, dy, normal, sums * condition, result)]
    return tuple(found)


def _bounds_of_sums(
    case: NormCase, dy: Tensor, normal: Tensor, conditioned: Tensor, result: float
) -> tuple[Tensor, ...]:
    """Of dweight, and of dbias where there is one."""
    over = (0, 1) if dy.dim() == 3 else (0, 2, 3)
    long = one_by_one(case.elements / case.channels)
    sums = CONDITIONED * SUM_EPS[case.dtype] * long
    lever = (conditioned * long * (1 + normal.abs())).reshape(case.shape)
    rounded = result if case.dtype == "bf16" else 0.0  # the gradient of a weight that was rounded to x's dtype
    whole = (dy * normal.reshape(case.shape)).sum(over).abs()
    dweight = (dy * lever).square().sum(over).sqrt() + (sums + rounded) * whole
    dbias = sums * dy.square().sum(over).sqrt() + (sums + rounded) * dy.sum(over).abs()
    return (dweight, dbias) if case.bias else (dweight,)


def gate(case: NormCase, inputs: tuple[Tensor, ...], outputs: Any) -> float:
    """Largest relative error over the outputs. Raises Wrong."""
    given = list(flatten(outputs).values())
    wanted = names(case)
    if len(given) != len(wanted):
        raise Wrong(f"returned {len(given)} tensors, expected {len(wanted)}: {', '.join(wanted)}")
    error = 0.0
    for name, value, want, bound in zip(wanted, given, reference(case, *inputs), bounds(case, *inputs), strict=True):
        got = to_float64(value, name)
        like(value, inputs[0 if name in ("y", "dx") else 1], name)
        error = max(error, _compare(case, name, got, to_float64(want), to_float64(bound)))
    return error


def _compare(case: NormCase, name: str, got: Array, want: Array, bound: Array) -> float:
    """Relative L2 error. Raises Wrong."""
    if got.shape != want.shape:
        raise Wrong(f"{name} has shape {got.shape}, expected {want.shape}")
    excess = abs(got - want) / bound
    worst = np.unravel_index(int(np.argmax(np.nan_to_num(excess, nan=np.inf))), got.shape)
    if not excess[worst] <= 1:  # also where it is not a number
        off = int((~(excess <= 1)).sum())
        raise Wrong(
            f"{name}{[int(i) for i in worst]} is {got[worst]:.6g}, expected {want[worst]:.6g}; "
            f"tolerance {bound[worst]:.2g} ({case.dtype}, by the condition of its set); {off} of {got.size} are off"
        )
    norm = float((want**2).sum())
    missed = float(((got - want) ** 2).sum())
    return math.sqrt(missed / norm) if norm else math.sqrt(missed)
