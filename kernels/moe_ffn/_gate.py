"""The reference in float64, and how far from it an answer may be.

Every part of an output is held to a bound of its own: a token's y and dx, an expert's gradients. What rounding does to
a part is in proportion to its root mean square, since its elements are sums of many terms of both signs. So an expert
with few tokens is judged by its own small gradients, and a token that is dropped has to be zero. An expert's gradients
are products of hidden units and tokens, some of which are far larger than the rest: beside the root mean square of the
whole stands that of the row times that of the column, over that of the whole, which is what an element's terms come to.

Letters: B groups, T tokens of a group, D width, H hidden units, F = 2 H, E experts.

Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1, for sums of rounded products
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archbench.checks import Array, Wrong, flatten, like, to_float64
from archbench.kernels.moe_ffn import MoeCase
from archbench.kernels.moe_ffn._layers import expert_by_expert
from archbench.kernels.moe_ffn._workload import names, workload

# Shares of a part's root mean square that an element may be off. float32: three products in a row, each off by some
# 2^-24 sqrt(log2 terms) of its size when summed in blocks, five deviations: 2e-6; ten times that for sums one by one.
# bf16: hidden units and their product with the gate are rounded to 2^-9 of themselves, independently, which the sums
# average to 2^-9 sqrt(3) of the whole; five deviations and the rounding of the result itself: 2e-2, and as much again
# for gradients of the hidden units, which are rounded once more. float64 has no wider reference: as float32, and more.
# An element far above the root mean square is the work of few terms, whose own roundings do not average: four spacings.
#
# Largest share of the bound that was used: a loop over experts, one-hot products and a form that rounds to x's dtype
# after every step, on CPU; all test cases with 20 seeds, and cases of 2,048 tokens, 256 and 512 wide, with two or one.
#
#                         y     dx    drouter  dw_in  dw_out  loss
#   fp32, test cases      0.08  0.18  0.05     0.20   0.14    0.01
#   fp32, 2,048 tokens    0.16  0.19  0.04     0.08   0.11    0.01
#   bf16, test cases      0.64  0.53  0.23     0.36   0.47    0.01
#   bf16, 2,048 tokens    0.52  0.62  0.18     0.33   0.35
#   fp64, test case       0.01  0.01  0.01     0.01   0.01
TOLERANCE = {"fp64": 1e-12, "fp32": 2e-5, "bf16": 4e-2}
OWN = {"fp64": 2.0**-50, "fp32": 2.0**-21, "bf16": 2.0**-6}
LOSS_TOLERANCE = {"fp64": 1e-12, "fp32": 1e-5, "bf16": 1e-5}  # it is computed in float32 at least


def reference(case: MoeCase, *inputs: Tensor) -> Any:
    """Outputs in float64, in the order of ``names``."""
    return workload(case, partial(expert_by_expert, case))(*(tensor.double() for tensor in inputs))


def gate(case: MoeCase, inputs: tuple[Tensor, ...], outputs: Any) -> float:
    """Largest relative error over the outputs. Raises Wrong."""
    return compared(case, names(case), inputs, outputs, reference(case, *inputs))


def compared(case: MoeCase, expected: Sequence[str], inputs: tuple[Tensor, ...], outputs: Any, wanted: Any) -> float:
    """Largest relative error of the outputs against the wanted ones. Raises Wrong."""
    got, want = list(flatten(outputs).values()), list(flatten(wanted).values())
    if len(got) != len(expected):
        raise Wrong(f"returned {len(got)} tensors, expected {len(expected)}: {', '.join(expected)}")
    error = 0.0
    for name, value, right in zip(expected, got, want, strict=True):
        if name == "dropped":
            _same_count(value, right)
        elif name == "loss":
            error = max(error, _close_loss(case, value, right))
        else:
            like(value, inputs[0], name)
            error = max(error, _close(case, name, inputs, want[0], to_float64(value, name), to_float64(right)))
    return error


def _same_count(value: Any, right: Tensor) -> None:
    if type(value) is not Tensor or value.dtype != torch.int64 or value.ndim:
        raise Wrong(f"dropped is a {type(value).__name__}, expected an int64 scalar tensor")
    if int(value) != int(right):
        raise Wrong(f"dropped is {int(value)}, expected {int(right)}: every drop has to be counted")


def _close_loss(case: MoeCase, value: Any, right: Tensor) -> float:
    if type(value) is not Tensor or value.ndim or value.dtype not in (torch.float32, torch.float64):
        raise Wrong(f"loss is a {type(value).__name__}, expected a float32 scalar tensor")
    off, bound = abs(float(value) - float(right)), LOSS_TOLERANCE[case.dtype] * (1 + abs(float(right)))
    if not off <= bound:
        raise Wrong(f"loss is {float(value):.8g}, expected {float(right):.8g}; tolerance {bound:.2g}")
    return off / (1 + abs(float(right)))


def _router_floor(case: MoeCase, inputs: tuple[Tensor, ...], y: Tensor) -> Array:
    """(D,): what the terms of the router's gradient come to. They may cancel: with one expert they do exactly.

    An expert's answer reaches the logits through the Jacobian of a softmax, which is at most a quarter.
    """
    x_BTD, dy_BTD = inputs[0].double(), inputs[-1].double()
    slope_BT1 = (dy_BTD * y.to(dy_BTD)).sum(-1, keepdim=True)
    return to_float64((slope_BT1 * x_BTD).square().sum((0, 1)).sqrt() / 4)


def _scale(name: str, want: Array) -> Array:
    """Of the elements' errors, up to the factor that belongs to the dtype; broadcasts to ``want``."""
    square = want**2
    if name not in ("dw_in", "dw_out"):
        return np.asarray(np.sqrt(square.mean(-1, keepdims=True)))
    whole, row, column = (square.mean(axes, keepdims=True) for axes in ((-2, -1), -1, -2))
    outer = np.divide(row * column, whole, out=np.zeros_like(want), where=whole > 0)
    return np.asarray(np.sqrt(whole) + np.sqrt(outer))


def bound(case: MoeCase, name: str, inputs: tuple[Tensor, ...], y: Tensor, want: Array) -> Array:
    """How far each element of an output may be from ``want``. ``y`` is the reference's."""
    scale = _scale(name, want)
    if name == "drouter":
        scale = scale + _router_floor(case, inputs, y)
    return np.asarray(TOLERANCE[case.dtype] * scale + OWN[case.dtype] * abs(want))


def _close(case: MoeCase, name: str, inputs: tuple[Tensor, ...], y: Tensor, got: Array, want: Array) -> float:
    """Relative L2 error. Raises Wrong."""
    if got.shape != want.shape:
        raise Wrong(f"{name} has shape {got.shape}, expected {want.shape}")
    allowed = bound(case, name, inputs, y, want)
    wrong = ~(abs(got - want) <= allowed)  # also where it is not a number
    if wrong.any():
        worst = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise Wrong(
            f"{name}{list(worst)} is {got[worst]:.6g}, expected {want[worst]:.6g}; tolerance {allowed[worst]:.2g} "
            f"({case.dtype}, by the root mean square of its part); {int(wrong.sum())} of {wrong.size} are off"
        )
    norm, missed = float((want**2).sum()), float(((got - want) ** 2).sum())
    return math.sqrt(missed / norm) if norm else math.sqrt(missed)
