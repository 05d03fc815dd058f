"""The paired clock: contender and baseline alternate in random order, in one process, until the ratio is known.

On a busy host absolute times move by a factor of three while the ratio of neighbouring samples holds, so the
ratio is what is measured here. Every block takes three samples in random order: the contender, the baseline,
and the baseline again. The third is the A/A control: what it differs from the second by is what this host, at
this minute, calls "no difference", and nothing smaller than that is ranked.

The clock stops when the 95 % interval of the paired log ratio is narrow enough or the time budget is spent,
never before ``min_blocks``. It stops on the *width* of the interval, never on its position, so stopping early
does not favour either side.

Source: Georges, Buytaert & Eeckhout 2007, doi:10.1145/1297027.1297033 (why intervals);
Kalibera & Jones 2013, doi:10.1145/2464157.2464160 (why ratios need their own).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from archbench.cells import Duel
from archbench.hardware.timers import Inputs, Timer, quiet
from archbench.stats import Interval, hodges_lehmann, log_ratios
from archbench.track import Call, Timing

MAX_CALLS_PER_SAMPLE = 100_000
LATE_FLOOR_S = 50e-6  # a device-wide synchronize costs up to this with nothing left to wait for
LATE_SHARE = 0.05


class LateWork(Exception):
    """Device work went on after the timed region: the sample is not the time of the answer."""


@dataclass
class Audit:
    """What is done between samples so that a contender that answers from memory while it is timed gains nothing.

    One sample of the contender, at a block nobody can foresee, has its last inputs replaced and its answer kept:
    ``refill(inputs)`` puts fresh values into the tensors of an input set, in place; ``keep(inputs, output)`` copies
    what the timed call made of them. ``renew(batch)`` follows every sample and changes the values of the sets it used.
    """

    refill: Callable[[Inputs], None]
    keep: Callable[[Inputs, Any], None]
    renew: Callable[[Sequence[Inputs]], None]


@dataclass
class _Side:
    call: Call
    calls: int = 1
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


@dataclass
class Rotation:
    """Input sets in turn. All sides draw from one rotation, so that none meets a set another side has just warmed."""

    sets: Sequence[Inputs]
    turn: int = 0

    def next(self, count: int) -> list[Inputs]:
        """The next sets, one per call."""
        picked = [self.sets[(self.turn + i) % len(self.sets)] for i in range(count)]
        self.turn = (self.turn + count) % len(self.sets)
        return picked


def calibrate(call: Call, rotation: Rotation, timer: Timer, min_sample_s: float) -> int:
    """Calls per sample so that one lasts at least ``min_sample_s``; doubles as the warm-up (two samples at least)."""
    timer.sample(call, rotation.next(1))
    calls = 1
    while True:
        seconds = timer.sample(call, rotation.next(calls)).seconds
        if seconds >= min_sample_s or calls >= MAX_CALLS_PER_SAMPLE:
            return calls
        grow = 1.2 * min_sample_s / seconds if seconds > 0 else 10.0
        calls = min(MAX_CALLS_PER_SAMPLE, max(calls + 1, math.ceil(calls * min(grow, 10.0))))


def fight(
    contender: Call,
    baseline: Call,
    sets: Sequence[Inputs],
    timer: Timer,
    timing: Timing,
    *,
    rng: random.Random | None = None,
    audit: Audit | None = None,
    now: Callable[[], float] = monotonic,
) -> tuple[Duel, Interval]:
    """Time ``contender`` against ``baseline`` on one rotation of input sets.

    Returns the blocks (seconds per call) and the interval of the paired log ratio.
    Raises LateWork when the contender leaves device work running, ValueError on an empty ``sets``.
    """
    if not sets:
        raise ValueError("the clock needs at least one set of inputs")
    rng = rng or random.Random()
    rotation = Rotation(sets)
    sides = {"contender": _Side(contender), "baseline": _Side(baseline), "control": _Side(baseline)}
    with quiet():
        sides["contender"].calls = calibrate(contender, rotation, timer, timing.min_sample_s)
        sides["baseline"].calls = calibrate(baseline, rotation, timer, timing.min_sample_s)
        sides["control"].calls = sides["baseline"].calls
        audit_at = rng.randrange(1, timing.min_blocks)
        if audit:
            audit.renew(sets)  # calibration has shown them to both sides
        late = 0.0
        started = now()
        ratio = Interval(0.0, -math.inf, math.inf, 0)
        stopped = "budget"
        for block in range(timing.max_blocks):
            order = list(sides)
            rng.shuffle(order)
            for name in order:
                side = sides[name]
                batch = rotation.next(side.calls)
                audited = audit if block == audit_at and name == "contender" else None
                if audited:
                    audited.refill(batch[-1])
                sample = timer.sample(side.call, batch)
                if audited:
                    audited.keep(batch[-1], sample.last_output)
                if audit:
                    audit.renew(batch)
                if name == "contender" and sample.late_seconds > max(LATE_FLOOR_S, LATE_SHARE * sample.seconds):
                    late += 1
                # A clock that did not advance is a call below its resolution, not an infinitely fast one.
                side.seconds.append(max(sample.seconds, 1e-9) / side.calls)
                if sample.cpu_seconds is not None:
                    side.cpu_seconds.append(sample.cpu_seconds / side.calls)
            if late > (block + 1) / 2 and block + 1 >= 3:
                raise LateWork("leaves work running on the device after the call's own stream has finished")
            if block + 1 < timing.min_blocks:
                continue
            ratio = hodges_lehmann(log_ratios(_duel(sides, "")))
            if ratio.halfwidth <= timing.ratio_halfwidth:
                stopped = "interval"
                break
            if now() - started > timing.budget_s:
                break
    duel = _duel(sides, stopped)
    return duel, ratio


def _duel(sides: dict[str, _Side], stopped: str) -> Duel:
    return Duel(
        contender_s=sides["contender"].seconds,
        baseline_s=sides["baseline"].seconds,
        control_s=sides["control"].seconds,
        contender_cpu_s=sides["contender"].cpu_seconds,
        calls=(sides["contender"].calls, sides["baseline"].calls),
        stopped=stopped,
    )
