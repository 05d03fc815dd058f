"""The gate as a contender meets it: fresh inputs, the same memory with other values, and a look back.

What each step catches:
- the contender runs before the reference, on its own copies: an input mutator cannot spoil the reference;
- its outputs are copied at once and compared again at the end: lazy or late work shows;
- the second question uses the *same tensors* with new values: an answer cached by identity shows;
- inputs are compared bit by bit afterwards: in-place work on them shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from archbench.checks import Wrong
from archbench.harness.tensors import duplicate, refill, same, snapshot
from archbench.track import Call, Contender, Device, Judging, Track


@dataclass(frozen=True)
class Examiner:
    """Asks one contender of one case; ``work`` is its call wrapped by the track's workload."""

    track: Track[Any]
    case: Any
    contender: Contender[Any]
    work: Call
    device: Device
    name: str  # of the contender
    judging: Judging | None = None  # the work, where the track's workload made it one that judges

    def ask_once(self, seed: int) -> float:
        """One question with fresh inputs; the relative error. Raises Wrong."""
        return self._ask(self.track.make_inputs(self.case, seed, self.device))

    def examine(self, seed: int) -> float:
        """Two questions, the second in the memory of the first; the larger relative error. Raises Wrong."""
        inputs = self.track.make_inputs(self.case, seed, self.device)
        first = self._ask(inputs)
        if not refill(inputs, self.track.make_inputs(self.case, seed + 1, self.device)):
            return first
        return max(first, self._ask(inputs))

    def judge(self, inputs: tuple[Any, ...], outputs: Any) -> float:
        """Asks the contender's own gate where it computes another function, else the workload or the track's gate.

        Raises Wrong.
        """
        if self.judging is not None and self.contender.gate is None:
            return self.judging.judge(inputs, outputs)
        gate = self.contender.gate or self.track.gate
        return gate(self.case, inputs, outputs)

    def _ask(self, inputs: tuple[Any, ...]) -> float:
        pristine = duplicate(inputs)
        outputs = self.work(*inputs)
        seen, kept = snapshot(outputs), duplicate(outputs)
        for i, (before, after) in enumerate(zip(pristine, inputs, strict=True)):
            if not same(before, after):
                raise Wrong(f"changed its input[{i}] in place")
        error = self.judge(pristine, kept)
        self._unchanged(outputs, seen)
        return error

    def _unchanged(self, outputs: Any, seen: dict[str, Any]) -> None:
        for name, array in snapshot(outputs).items():
            if not np.array_equal(array, seen[name], equal_nan=True):
                raise Wrong(f"{name} changed after the call had returned: work was still going on")
