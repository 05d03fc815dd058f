"""Inputs, and whether an answer is the product it should be.

The reference is float64 on the exact weights. What an output may be off by follows from the kind:

- float32 sums in any order: 2^-24 of the terms' absolute sum, times sqrt(K) for the walk of K roundings.
- ``w4a16``: y is rounded to 8 bits, and a contender may round the weights to bfloat16 and add up in float32: 2^-9 a
  term, independent.
- ``w4a8``: an activation is off by at most half of its row's largest magnitude / 127: uniform, independent, so an
  output by that over sqrt(3) times the root of the sum of squares of its weights.

Independent errors count six deviations.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from archbench.checks import Wrong, like, to_float64
from archbench.kernels.int4_linear import Int4Case
from archbench.kernels.int4_linear._weights import Quantised, matrices
from archbench.track import Device

DEVIATIONS = 6.0
BF16, FP32 = 2.0**-9, 2.0**-24  # half a unit in the last place, relative


def make_inputs(case: Int4Case, seed: int, device: Device) -> tuple[Any, ...]:
    """x (M, K): normal, and a few features fifteen times larger, as transformers have them."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((case.tokens, case.inputs), dtype=np.float32)
    x[:, random.integers(0, case.inputs, max(1, case.inputs // 512))] *= 15
    return (torch.from_numpy(x).to(device, torch.bfloat16 if case.kind == "w4a16" else torch.float32),)


@lru_cache(maxsize=1)
def known(case: Int4Case) -> list[Quantised]:
    """A cell asks several times."""
    return matrices(case)


def gate(case: Int4Case, inputs: tuple[Any, ...], outputs: Any) -> float:
    """The largest relative L2 error of a layer. Raises Wrong."""
    (x,) = inputs
    like(outputs, x)
    got = to_float64(outputs)
    shape = (case.layers, case.tokens, case.outputs)
    if got.shape != shape:
        raise Wrong(f"output has shape {got.shape}, expected {shape}")
    x64 = to_float64(x)
    return max(_judge(case, x64, matrix, got[i], i) for i, matrix in enumerate(known(case)))


def _judge(case: Int4Case, x: Any, matrix: Quantised, got: Any, layer: int) -> float:
    step = 1 << 10  # rows of a matrix in float64 at a time
    missed = length = 0.0
    for first in range(0, case.outputs, step):
        rows = slice(first, first + step)
        weights = Quantised(matrix.codes[rows], matrix.scales[rows]).dense().astype(np.float64)
        want = x @ weights.T
        off = np.abs(got[:, rows] - want)
        bound = allowed(case, x, weights, want)
        bad = ~(off <= bound)  # not finite either
        if bad.any():
            token, output = (int(i) for i in np.argwhere(bad)[0])
            raise Wrong(
                f"output[{layer}, {token}, {first + output}] is {got[token, first + output]:.6g}, expected "
                f"{want[token, output]:.6g}; the bound of {case.kind} is {bound[token, output]:.2g}; "
                f"{int(bad.sum())} of {bad.size} values of these rows are off"
            )
        missed += float((off**2).sum())
        length += float((want**2).sum())
    return float(np.sqrt(missed / length)) if length else float(np.sqrt(missed))


def allowed(case: Int4Case, x: Any, weights: Any, want: Any) -> Any:
    """How far each output (M, N) may be off."""
    squares = np.sqrt((x**2) @ (weights**2).T)  # root of the sum of the terms' squares
    bound = DEVIATIONS * FP32 * np.sqrt(case.inputs) * squares
    if case.kind == "w4a16":
        bound = bound + DEVIATIONS * BF16 * squares + BF16 * np.abs(want)
    if case.kind == "w4a8":
        half_step = np.abs(x).max(axis=1, keepdims=True) / 254
        lengths = np.sqrt((weights**2).sum(axis=1))
        bound = bound + DEVIATIONS * half_step / np.sqrt(3.0) * lengths
    return bound
