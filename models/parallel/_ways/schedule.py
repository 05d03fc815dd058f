"""Which micro-batch a pipeline's stage works on next, and how much of the time it works at all.

GPipe fills and drains: a stage makes the forward passes of all micro-batches, then their backward passes, the last one
first, because its activations are the newest. With re-materialisation only the inputs of a stage are kept, and a
forward pass is made again right before its backward pass; it needs no gradient, so it is made while the gradient is on
its way. The last micro-batch goes back at once, so nothing is gained by forgetting it.

Letters: K stages, M micro-batches.

Source: Huang et al. 2018, arXiv:1811.06965, section 2.3; Kim et al. 2020, arXiv:2004.09910 (torchgpipe: the last
micro-batch is not made again)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from archbench.models.parallel._trainer import Mark

Work = Literal["forward", "recompute", "backward"]
COMPUTE: tuple[Work, ...] = ("forward", "recompute", "backward")


class Slot(NamedTuple):
    """A pass of one micro-batch through one stage. ``keeps``: a forward that remembers what its backward needs."""

    what: Work
    part: int
    keeps: bool = True


def gpipe(micro_batches: int, *, recompute: bool = False) -> list[Slot]:
    """What every stage does, in order."""
    last = micro_batches - 1
    slots = [Slot("forward", part, keeps=part == last or not recompute) for part in range(micro_batches)]
    for part in reversed(range(micro_batches)):
        if recompute and part != last:
            slots.append(Slot("recompute", part))
        slots.append(Slot("backward", part))
    return slots


def bubble_formula(stages: int, micro_batches: int) -> float:
    """The share of idle slots where all slots are equally long and nothing has to be sent: (K - 1) / (M + K - 1)."""
    return (stages - 1) / (micro_batches + stages - 1)


def bubble(marks_by_rank: Sequence[Sequence[Mark]]) -> float:
    """The share of an update in which the ranks do not compute: 1 - (sum of passes) / (K x window).

    A pass is a forward, recompute or backward mark; all else is idle, transfers and imbalance included. The window
    lasts from the first forward's begin to the last backward's end, so the optimizer is outside. The first stage has
    both: nobody begins before it and nobody ends after it. So the window is the longest of the ranks' own, and hosts
    need no common clock. Raises ValueError where a rank has no pass.
    """
    passes = [[mark for mark in marks if mark.what in COMPUTE] for marks in marks_by_rank]
    if not passes or not all(passes):
        raise ValueError("a bubble needs a forward or backward pass of every rank")
    window_s = max(max(m.stop_s for m in marks) - min(m.start_s for m in marks) for marks in passes)
    busy_s = sum(mark.stop_s - mark.start_s for marks in passes for mark in marks)
    return 1.0 - busy_s / (len(passes) * window_s)
