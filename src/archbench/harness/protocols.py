"""How a cell's numbers come about. A track names its protocol; this is the list.

``duel``: the call is short and repeatable, so contender and baseline alternate in blocks under the paired clock.
A protocol gets a ``Setting`` and returns ``Findings``; training runs and searches will bring theirs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from archbench.cells import Duel, Metric
from archbench.checks import Wrong
from archbench.hardware.clock import Audit, LateWork, fight
from archbench.hardware.timers import Inputs, Timer, timer_for
from archbench.harness.gate import Examiner
from archbench.harness.tensors import duplicate, refill, size_bytes
from archbench.stats import Interval, control_log_ratios, hodges_lehmann, median_interval
from archbench.track import Call, Place

MAX_INPUT_SETS = 256
MEMORY_SHARE = 1 / 8


@dataclass(frozen=True)
class Setting:
    """A cell ready to be measured: both sides built and past their gates."""

    contender: Examiner
    baseline: Call
    place: Place
    cache_bytes: int  # the last-level cache of the device
    seed: int
    rng: random.Random


@dataclass(frozen=True)
class Findings:
    """What a protocol found out. ``latency_s`` is what the physics gate looks at."""

    metrics: dict[str, Metric]
    latency_s: float
    error: float = 0.0
    control: Metric | None = None
    duel: Duel | None = None
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def as_metric(interval: Interval, unit: str) -> Metric:
    return Metric(value=interval.value, unit=unit, ci=(interval.lo, interval.hi), n=interval.n)


def input_sets(setting: Setting) -> list[Inputs]:
    """Enough copies of the inputs that one round through them leaves the last-level cache.

    At most 256 copies and an eighth of the memory: tiny inputs stay partly cached, as they would in a network.
    """
    examiner = setting.contender
    first = examiner.track.make_inputs(examiner.case, setting.seed, examiner.device)
    size = size_bytes(first)
    if size == 0:
        return [first]
    wanted = math.ceil(setting.cache_bytes / size) + 1
    allowed = int(setting.place.memory_bytes * MEMORY_SHARE / size)
    return [first, *(duplicate(first) for _ in range(min(wanted, allowed, MAX_INPUT_SETS) - 1))]


class _KeptSample:
    """The audited sample: what the contender answered, while timed, to inputs it had never seen."""

    def __init__(self, setting: Setting) -> None:
        self._examiner = setting.contender
        self._seed = setting.seed + 7
        self._kept: tuple[Inputs, Any] | None = None

    def refill(self, inputs: Inputs) -> None:
        fresh = self._examiner.track.make_inputs(self._examiner.case, self._seed, self._examiner.device)
        refill(inputs, fresh)

    def keep(self, inputs: Inputs, output: Any) -> None:
        self._kept = (duplicate(inputs), duplicate(output))

    def error(self) -> float:
        """Raises Wrong when the timed answer was not the answer."""
        if self._kept is None:
            raise AssertionError("the clock ended before the audited block")
        try:
            return self._examiner.judge(*self._kept)
        except Wrong as wrong:
            raise Wrong(f"answered wrongly while it was timed: {wrong}") from wrong


def duel(setting: Setting, timer: Timer | None = None) -> Findings:
    """The paired clock, with one audited sample. Raises Wrong for stale answers and for late device work."""
    examiner = setting.contender
    timing = examiner.track.timing
    timer = timer or timer_for(setting.place.device, cuda_graph=timing.cuda_graph)
    kept = _KeptSample(setting)
    try:
        blocks, ratio = fight(
            examiner.work,
            setting.baseline,
            input_sets(setting),
            timer,
            timing,
            rng=setting.rng,
            audit=Audit(kept.refill, kept.keep),
        )
    except LateWork as late:
        raise Wrong(str(late)) from late
    latency = median_interval(blocks.contender_s)
    return Findings(
        metrics={"latency_s": as_metric(latency, "s"), "slowdown": as_metric(ratio.exp(), "ratio")},
        latency_s=latency.value,
        error=kept.error(),
        control=as_metric(hodges_lehmann(control_log_ratios(blocks)).exp(), "ratio"),
        duel=blocks,
    )


PROTOCOLS: dict[str, Callable[[Setting], Findings]] = {"duel": duel}
