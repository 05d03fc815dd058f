"""Whether a runtime gave the answer of the model it was given.

The reference computes with the very weights of the case, dequantised; so a quantised case is not judged by what its
quantiser lost. What differs is arithmetic. Beside quantised weights runtimes round activations to int8, 32 of them to a
scale: a step of max / 127, and with a maximum of 2.4 standard deviations an error of 2.4 / 127 / sqrt(12) = 0.55 % in
every product. Beside float16 weights they round to float16: 0.02 %. A token passes four products in a row in each layer
(queries and values, their output, gate and up, down) and one at the end, each with an error of its own: the square root
of 4 L + 1 of them, where the residual stream dilutes none. That makes 2.0, 5.2 and 6.1 % for 3, 22 and 30 layers; 2.8
(random weights), 3.0 (random) and 5.6 % (SmolLM2 in Q4_0; 6.7 in Q4_K_M) were measured with three runtimes. Allowed is
twice as much over many rows, and twice that for a row alone: of 40 rows of SmolLM2 one is off by twice the mean.

Errors are relative to how far the logits of a row are spread, their mean taken out: no probability depends on it, while
a trained model's logits lie four to eight spreads from zero, and would hide any mistake. An error of e is a correlation
of sqrt(1 - e^2) or more. Beside float32 weights nothing is rounded, the cache neither.

A trained model's first positions are another matter: later ones attend to them as to a place of rest, with activations
far larger than others, and what stands beside one of those in its block is rounded away. SmolLM2 was off there by up to
0.94 spreads in one of twelve draws, with every runtime that rounds to int8, and by nothing with one that does not. So
its first rows are only asked to have something to do with the reference's; behind them the bounds are the same.

Letters: L layers, R rows, V vocabulary.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/perplexity (its --kl-divergence compares in this way)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from archbench.checks import Wrong, flatten, to_float64
from archbench.models.edge_llm._config import MODELS
from archbench.models.edge_llm._reference import logits

if TYPE_CHECKING:
    from archbench.models.edge_llm import EdgeCase

Array = npt.NDArray[np.float64]

EXACT = 1e-4  # float32: rounding of 2^-24 in sums of some hundred products; 2e-6 were measured
HALF = 2e-4  # of one product, activations rounded to float16
INT8 = 5.5e-3  # of one product, activations rounded to int8 in blocks of 32
MARGIN = 2.0
ROW = 2.0  # how much worse than many rows together one of them may be
ENTRY = 6 * ROW  # and one logit: six deviations in a row that is off by the most it may; there are a million of them
SHIFT = 10.0  # and the mean of a row
FIRST = 8  # positions of a trained model whose rows may be lost to rounding; the seventh was seen
UNLIKE = 1.2  # spreads one of those may be off: rows that have nothing to do with one another are off by 1.41
BEST = {"f32": 2, "f16": 3}  # a row's best token is among so many best of the reference: near ties change places
BEST_INT8 = 10


@dataclass(frozen=True)
class Bound:
    """How far logits may be from the reference's."""

    relative: float  # of many rows together
    row: float  # times that, one alone
    best: int
    reason: str
    first: int = 0  # rows at the beginning that may be lost to rounding


def bound(case: EdgeCase) -> Bound:
    products = 4 * case.config.layers + 1
    if case.kv == "f16" and case.weights == "f32":
        return Bound(EXACT, 1.0, BEST["f32"], "float32 weights, activations and cache")
    step, word = (HALF, "float16") if case.kv == "f16" and case.weights == "f16" else (INT8, "int8")
    best = BEST["f16"] if step == HALF else BEST_INT8
    relative = MARGIN * step * products**0.5
    reason = f"activations in {word}: {step:.2%} in each of {products} products in a row, twice"
    lost = step == INT8 and not MODELS[case.model].random and case.phase == "tg"
    return Bound(relative, ROW, best, reason, max(0, FIRST - case.depth) if lost else 0)


def gate(case: EdgeCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    """The relative error of all logits. Raises Wrong."""
    given = list(flatten(outputs).values())
    if len(given) != 1:
        raise Wrong(f"returned {len(given)} arrays, expected the logits")
    got_RV, want_RV = to_float64(given[0], "logits"), logits(case, inputs[0]).astype(np.float64)
    return agreement(got_RV, want_RV, bound(case))


def agreement(got_RV: Array, want_RV: Array, allowed: Bound) -> float:
    """The relative error of logits. Raises Wrong where they are not within the bound."""
    if got_RV.shape != want_RV.shape:
        raise Wrong(f"logits have shape {got_RV.shape}, expected {want_RV.shape}")
    if not np.isfinite(got_RV).all():
        row, token = map(int, np.argwhere(~np.isfinite(got_RV))[0])
        raise Wrong(f"logits[{row}, {token}] is {got_RV[row, token]}, expected {want_RV[row, token]:.6g}")
    off_RV = got_RV - want_RV
    spread_R = want_RV.std(axis=1)
    shift_R = np.abs(off_RV.mean(axis=1)) / spread_R
    off_RV -= off_RV.mean(axis=1, keepdims=True)
    row_R = off_RV.std(axis=1) / spread_R
    if allowed.first:
        first = min(allowed.first, len(row_R) - 1)  # the last row is always judged
        if row_R[:first].max(initial=0.0) > UNLIKE:
            raise Wrong(f"the logits of row {int(row_R[:first].argmax())} have nothing to do with the reference's")
        return agreement(got_RV[first:], want_RV[first:], replace(allowed, first=0))
    error = float(np.linalg.norm(off_RV.std(axis=1)) / np.linalg.norm(spread_R))
    entry = np.unravel_index(int(np.argmax(np.abs(off_RV) / spread_R[:, None])), off_RV.shape)
    row, token = int(entry[0]), int(entry[1])
    worst = f"worst is [{row}, {token}]: {got_RV[entry]:.6g}, expected {want_RV[entry]:.6g}"
    limit = allowed.relative
    few = 1 + (allowed.row - 1) * len(want_RV) ** -0.5
    for value, factor, what in (
        (error, few, "the logits are off"),
        (float(row_R.max()), allowed.row, f"the logits of row {int(row_R.argmax())} are off"),
        (float(abs(off_RV[entry]) / spread_R[row]), ENTRY, "a logit is off"),
        (float(shift_R.max()), SHIFT, f"row {int(shift_R.argmax())} is shifted"),
    ):
        if value > factor * limit:
            reason = allowed.reason if factor == 1 else f"{factor:.3g} times {limit:.3g}: {allowed.reason}"
            raise Wrong(f"{what} by {value:.3g} of their spread, allowed are {factor * limit:.3g} ({reason}); {worst}")
    _best(got_RV, want_RV, allowed.best)
    return error


def _best(got_RV: Array, want_RV: Array, allowed: int) -> None:
    """Raises Wrong where a row's best token is not among the first of the reference."""
    for row, (got_V, want_V) in enumerate(zip(got_RV, want_RV, strict=True)):
        token = int(got_V.argmax())
        rank = int((want_V > want_V[token]).sum()) + 1
        if rank > allowed:
            raise Wrong(
                f"row {row}: the best token is {token} ({got_V[token]:.6g}), the reference's number {rank} "
                f"({want_V[token]:.6g}; its best is {int(want_V.argmax())}); allowed are the first {allowed}"
            )
