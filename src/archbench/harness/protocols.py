"""How a cell's numbers come about. A track names its protocol; this is the list.

``duel``: the call is short and repeatable, so contender and baseline alternate in blocks under the paired clock.
``training``: one optimizer step is such a call; afterwards whole runs are made, one for each seed.
``instrumented``: a call of processes the track started; afterwards the track's own instruments look at it.
``inference``: a pass over a model is such a call; afterwards a process of its own loads it and makes one.

A protocol's timed part (``PROTOCOLS``) turns a ``Setting`` into ``Findings`` and may be asked again where the machine
was crowded; its study (``STUDIES``), if it has one, is long, is made once, and yields what no clock shows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import msgspec

from archbench.cells import Duel, Metric
from archbench.checks import Wrong
from archbench.hardware.clock import Audit, LateWork, fight
from archbench.hardware.timers import Inputs, Timer, timer_for
from archbench.harness.fresh import load
from archbench.harness.gate import Examiner
from archbench.harness.pool import Pool
from archbench.harness.study import Study, look, train
from archbench.harness.tensors import duplicate, refill, same, size_bytes
from archbench.stats import Interval, control_log_ratios, hodges_lehmann, median_interval
from archbench.track import Call, Place

MAX_INPUT_SETS = 256
MEMORY_SHARE = 1 / 8
THREADS_SLACK = 1.15  # the interpreter's other threads, and clocks read one after the other
READABLE_S = 1e-3


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
    """What a protocol found out. ``latency_s``, seconds per item, is what the physics gate looks at."""

    metrics: dict[str, Metric]
    latency_s: float
    error: float = 0.0
    control: Metric | None = None
    duel: Duel | None = None
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def as_metric(interval: Interval, unit: str) -> Metric:
    return Metric(value=interval.value, unit=unit, ci=(interval.lo, interval.hi), n=interval.n)


def input_pool(setting: Setting) -> Pool:
    """Enough input sets that one round through them leaves the last-level cache.

    At most 256, in an eighth of the memory: tiny inputs stay partly cached, as they would in a network.
    """
    examiner = setting.contender
    base = examiner.track.make_inputs(examiner.case, setting.seed, examiner.device)
    size = size_bytes(base)
    wanted = math.ceil(setting.cache_bytes / size) + 1 if size else 1
    allowed = int(setting.place.memory_bytes * MEMORY_SHARE / size) if size else 1
    return Pool(base, max(1, min(wanted, allowed, MAX_INPUT_SETS)), setting.rng, examiner.track.rolls(examiner.case))


class _KeptSample:
    """The audited sample: what the contender answered, while timed, to inputs it had never seen."""

    def __init__(self, setting: Setting, pool: Pool) -> None:
        self._examiner = setting.contender
        self._seed = setting.seed + 7
        self._pool = pool
        self._asked: Inputs = ()
        self._kept: Any = None
        self._unchanged = False

    def refill(self, inputs: Inputs) -> None:
        fresh = self._examiner.track.make_inputs(self._examiner.case, self._seed, self._examiner.device)
        refill(inputs, fresh)
        self._asked = duplicate(inputs)

    def keep(self, inputs: Inputs, output: Any) -> None:
        self._kept = duplicate(output)
        self._unchanged = same(self._asked, inputs)
        self._pool.restore(inputs)

    def error(self) -> float:
        """Raises Wrong when the timed answer was not the answer."""
        if not self._asked:
            raise AssertionError("the clock ended before the audited block")
        if not self._unchanged:
            raise Wrong("changed its inputs in place while it was timed")
        try:
            return self._examiner.judge(self._asked, self._kept)
        except Wrong as wrong:
            raise Wrong(f"answered wrongly while it was timed: {wrong}") from wrong


def duel(setting: Setting, timer: Timer | None = None) -> Findings:
    """The paired clock. Raises Wrong for stale answers, changed inputs, late device work, too many threads."""
    examiner = setting.contender
    timing = examiner.track.timing
    timer = timer or timer_for(setting.place.device, cuda_graph=timing.cuda_graph)
    pool = input_pool(setting)
    kept = _KeptSample(setting, pool)
    try:
        blocks, ratio = fight(
            examiner.work,
            setting.baseline,
            pool.sets,
            timer,
            timing,
            rng=setting.rng,
            audit=Audit(kept.refill, kept.keep, pool.renew),
        )
    except LateWork as late:
        raise Wrong(str(late)) from late
    error = kept.error()
    pool.check()
    check_threads(examiner.case.threads, blocks)
    blocks = per_item(blocks, examiner.track.items(examiner.case))
    latency = median_interval(blocks.contender_s)
    return Findings(
        metrics={"latency_s": as_metric(latency, "s"), "slowdown": as_metric(ratio.exp(), "ratio")},
        latency_s=latency.value,
        error=error,
        control=as_metric(hodges_lehmann(control_log_ratios(blocks)).exp(), "ratio"),
        duel=blocks,
    )


def per_item(blocks: Duel, items: int) -> Duel:
    """Blocks of a call that is several items, as seconds per item."""
    names = ("contender_s", "baseline_s", "control_s", "contender_cpu_s")
    return msgspec.structs.replace(blocks, **{name: [s / items for s in getattr(blocks, name)] for name in names})


def check_threads(allowed: int | None, blocks: Duel) -> None:
    """Raises Wrong where a call kept more cores busy than the case has threads.

    CPU time over wall time cannot exceed the number of threads that run, however busy the machine is, and samples
    below a millisecond do not count. Work in other processes is not seen.
    """
    pairs = zip(blocks.contender_cpu_s, blocks.contender_s, strict=False)
    busy = [cpu / wall for cpu, wall in pairs if wall * blocks.calls[0] >= READABLE_S]
    if allowed is not None and busy and median(busy) > allowed * THREADS_SLACK:
        raise Wrong(f"kept {median(busy):.2f} cores busy; the case allows {allowed} thread{'s' * (allowed > 1)}")


STUDIES: dict[str, Callable[[Examiner], Study]] = {"training": train, "inference": load, "instrumented": look}
PROTOCOLS: dict[str, Callable[[Setting], Findings]] = dict.fromkeys(["duel", *STUDIES], duel)
