"""Inputs, and whether an answer is the product it should be.

The reference is float64 on the exact weights. What an output may be off by follows from the kind:

- float32 sums in any order: 2^-24 of the terms' absolute sum, times sqrt(K) for the walk of K roundings.
- ``w4a16``: y is rounded to 8 bits, and a contender may round the weights to bfloat16 and add up in float32: 2^-9 a
  term, independent.
- ``w4a8``: an activation is off by at most half of its row's largest magnitude / 127: uniform, independent, so an
  output by that over sqrt(3) times the root of the sum of squares of its weights.

Independent errors count six deviations.

That bound is wide where K is large: it grows with sqrt(K), and what a few columns or the last bit of each code add to
an output is inside of it. So ``w4a8`` is looked at as a whole, too. The mean square of all errors of a layer is what
rounding gives, and no larger than chance allows. And no part of K may be missing: the errors are compared with what
each group of columns adds to the outputs, and where they take away half of that, the group was not multiplied.
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
    whole = Whole(case, x)
    for first in range(0, case.outputs, step):
        rows = slice(first, first + step)
        weights = Quantised(matrix.codes[rows], matrix.scales[rows]).dense().astype(np.float64)
        want = x @ weights.T
        error = got[:, rows] - want
        off = np.abs(error)
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
        if case.kind == "w4a8":
            whole.add(error, weights)
    if case.kind == "w4a8":
        whole.judge(layer)
    return float(np.sqrt(missed / length)) if length else float(np.sqrt(missed))


def allowed(case: Int4Case, x: Any, weights: Any, want: Any) -> Any:
    """How far each output (M, N) may be off."""
    squares = np.sqrt((x**2) @ (weights**2).T)  # root of the sum of the terms' squares
    bound = DEVIATIONS * FP32 * np.sqrt(case.inputs) * squares
    if case.kind == "w4a16":
        bound = bound + DEVIATIONS * BF16 * squares + BF16 * np.abs(want)
    if case.kind == "w4a8":
        bound = bound + DEVIATIONS * deviations(x)[:, None] * np.sqrt((weights**2).sum(axis=1))
    return bound


def deviations(x: Any) -> Any:
    """Of what 8 bits round an activation by, for each row (M)."""
    return np.abs(x).max(axis=1) / 254 / np.sqrt(3.0)


class Whole:
    """The errors of a layer in ``w4a8`` together, a part of the rows of its matrix after the other."""

    def __init__(self, case: Int4Case, x: Any) -> None:
        self._case, self._x, self._deviations = case, x, deviations(x)
        self._seen = self._expected = 0.0  # sums of squared errors
        self._along, self._power = np.zeros(case.inputs), np.zeros(case.inputs)

    def add(self, error: Any, weights: Any) -> None:
        """Errors (M, rows) of the outputs of weights (rows, K)."""
        squares = weights**2
        self._seen += float((error**2).sum())
        self._expected += float((self._deviations**2).sum() * squares.sum())
        self._along += (error.T @ self._x * weights).sum(axis=0)
        self._power += (self._x**2).sum(axis=0) * squares.sum(axis=0)

    def judge(self, layer: int) -> None:
        """Raises Wrong.

        A square of a uniform number has a variance of 4/5 of its mean's square, of a normal one 2; tokens with larger
        steps count for more. Sums of squares have a long upper tail: half of chance's square.
        """
        case, squares = self._case, self._deviations**2
        tokens = squares.sum() ** 2 / (squares**2).sum() if squares.any() else 1.0
        chance = DEVIATIONS * np.sqrt(0.8 / (tokens * case.inputs) + 2 / (tokens * case.outputs))
        most = 1 + chance + chance**2 / 2
        if self._seen > self._expected * most:
            ratio = np.sqrt(self._seen / self._expected) if self._expected else np.inf
            raise Wrong(
                f"output[{layer}] as a whole is off by {ratio:.3g} times what 8 bits round activations by; "
                f"chance allows {np.sqrt(most):.3g} times"
            )
        along, power = (sums.reshape(-1, case.group).sum(axis=1) for sums in (self._along, self._power))
        sigma = np.sqrt(self._expected / (case.tokens * case.outputs))
        bad = np.flatnonzero(-along > power / 2 + DEVIATIONS * sigma * np.sqrt(power))
        if len(bad):
            raise Wrong(
                f"output[{layer}]: columns {bad[0] * case.group} to {(bad[0] + 1) * case.group - 1} are missing: "
                f"the errors take away {-along[bad[0]] / power[bad[0]]:.0%} of what they add"
            )
