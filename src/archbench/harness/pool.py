"""Input sets whose values no timed call meets twice.

The sets rotate, so that one round leaves the last-level cache. After its use, untimed, a set's floating-point entries
are rolled along their longest axis by a random step: the values are drawn as before, rows stay rows, and an answer
remembered by value is an answer to another question. Where entries belong together, token by token, the track names the
axis of each (``Track.rolls``), so that the question stays as hard as it was drawn. A set that was just used is in the
cache anyway, and has left it again when its turn comes. Integers (indices, offsets) stay as they are: rolled, they
might not be valid.

Rolls add up, so what a set must hold is known at any time: at the end every set is compared with it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from archbench.checks import Wrong
from archbench.hardware.timers import Inputs
from archbench.harness.tensors import duplicate, is_tensor, refill, same

Rolls = Sequence[int | None]


class Pool:
    """``count`` copies of ``base``, each rolled by a step of its own."""

    def __init__(self, base: Inputs, count: int, rng: random.Random, rolls: Rolls | None = None) -> None:
        self._base, self._rng, self._rolls = base, rng, rolls
        self.sets = [duplicate(base) for _ in range(count)]
        self._steps = dict.fromkeys(map(id, self.sets), 0)
        self.renew(self.sets)

    def renew(self, used: Sequence[Inputs]) -> None:
        """Give the sets of a batch values nobody has seen in them."""
        for inputs in {id(inputs): inputs for inputs in used}.values():
            step = self._rng.randrange(1, 1 << 30)
            refill(inputs, rolled(inputs, step, self._rolls))
            self._steps[id(inputs)] += step

    def restore(self, inputs: Inputs) -> None:
        """Put back what was refilled with something else."""
        refill(inputs, self._expected(inputs))

    def check(self) -> None:
        """Raises Wrong where a set does not hold what it was given."""
        for inputs in self.sets:
            for i, (held, given) in enumerate(zip(inputs, self._expected(inputs), strict=True)):
                if not same(held, given):
                    raise Wrong(f"changed its input[{i}] in place while it was timed")

    def _expected(self, inputs: Inputs) -> Inputs:
        return rolled(self._base, self._steps[id(inputs)], self._rolls)


def rolled(inputs: Inputs, step: int, rolls: Rolls | None = None) -> Inputs:
    """The inputs with every floating-point entry rolled, along its longest axis where no other is named; the others
    themselves. ``rolls``: an axis for each input, None where it stays as it is.
    """
    axes = [_longest(entry) for entry in inputs] if rolls is None else rolls
    return tuple(_rolled(entry, step, axis) for entry, axis in zip(inputs, axes, strict=True))


def _longest(entry: Any) -> int | None:
    shape = tuple(getattr(entry, "shape", ()))
    return max(range(len(shape)), key=shape.__getitem__) if shape else None


def _rolled(entry: Any, step: int, axis: int | None) -> Any:
    if axis is None:
        return entry
    if is_tensor(entry) and entry.is_floating_point():
        return entry.detach().roll(step % max(1, entry.shape[axis]), axis)
    if isinstance(entry, np.ndarray) and entry.dtype.kind == "f":
        return np.roll(entry, step % max(1, entry.shape[axis]), axis)
    return entry
