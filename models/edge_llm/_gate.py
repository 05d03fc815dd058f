"""Whether a runtime gave the answer of the model it was given.

The reference computes with the very weights of the case, dequantised; so a quantised case is not judged by what its
quantiser lost. What differs is arithmetic: runtimes round activations to int8 beside quantised weights (and to float16
beside float16 ones), and that is the error the bounds allow.

Letters: R rows, V vocabulary.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/perplexity (its --kl-divergence compares in this way)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from archbench.checks import Wrong, flatten, to_float64
from archbench.models.edge_llm._reference import logits

if TYPE_CHECKING:
    from archbench.models.edge_llm import EdgeCase


@dataclass(frozen=True)
class Bound:
    """How far logits may be from the reference's."""

    relative: float  # |got - want| / |want| over all rows
    correlation: float  # of each row, at least
    top: int  # the best token is among so many best of the reference
    reason: str


EXACT = Bound(1e-4, 0.999999, 2, "float32 weights and activations: rounding of 2^-24 through some hundred sums")
HALF = Bound(1e-2, 0.9999, 3, "float16 activations: rounding of 2^-11 in every matrix product")
MIXED = Bound(0.1, 0.99, 10, "int8 activations in blocks of 32: half a percent in every matrix product")


def bound(case: EdgeCase) -> Bound:
    return {"f32": EXACT, "f16": HALF}.get(case.weights, MIXED)


def gate(case: EdgeCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    """The relative error of all logits. Raises Wrong."""
    given = list(flatten(outputs).values())
    if len(given) != 1:
        raise Wrong(f"returned {len(given)} arrays, expected the logits")
    got_RV, want_RV = to_float64(given[0], "logits"), logits(case, inputs[0]).astype(np.float64)
    if got_RV.shape != want_RV.shape:
        raise Wrong(f"logits have shape {got_RV.shape}, expected {want_RV.shape}")
    if not np.isfinite(got_RV).all():
        row, token = map(int, np.argwhere(~np.isfinite(got_RV))[0])
        raise Wrong(f"logits[{row}, {token}] is {got_RV[row, token]}, expected {want_RV[row, token]:.6g}")
    allowed = bound(case)
    error = float(np.linalg.norm(got_RV - want_RV) / np.linalg.norm(want_RV))
    if error > allowed.relative:
        row, token = map(int, np.unravel_index(np.abs(got_RV - want_RV).argmax(), got_RV.shape))
        raise Wrong(
            f"logits are off by {error:.3g} of their size, allowed are {allowed.relative:g} ({allowed.reason}); "
            f"most at [{row}, {token}]: {got_RV[row, token]:.6g}, expected {want_RV[row, token]:.6g}"
        )
    for row, (got_V, want_V) in enumerate(zip(got_RV, want_RV, strict=True)):
        found = float(np.corrcoef(got_V, want_V)[0, 1])
        if found < allowed.correlation:
            raise Wrong(
                f"the logits of row {row} correlate with the reference's by {found:.6g}, "
                f"expected are {allowed.correlation:g} ({allowed.reason})"
            )
        best = int(got_V.argmax())
        rank = int((want_V > want_V[best]).sum())
        if rank >= allowed.top:
            raise Wrong(
                f"row {row}: the best token is {best} ({got_V[best]:.6g}), the reference's number {rank + 1} "
                f"({want_V[best]:.6g}; its best is {int(want_V.argmax())}); allowed are the first {allowed.top}"
            )
    return error
