"""Steps: where a series changed its level for longer than its noise explains, as asv finds them.

The segments are those of asv's own module ``step_detect``: its penalised fit, its search for the penalty, its median
cost. One of its inner loops, the noise correlation of a fit, is written here with numpy: the same segments in two
thirds of the time. That module alone is loaded, because importing asv takes longer than rendering a small board.

Looking for steps costs 20 to 30 microseconds a point. In an archive of a
million points that would be nearly all of the time, so ``chosen`` picks the series whose level moves most.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEAST_CHANGE = 0.05  # asv's threshold of a regression
PACKAGE = "_archbench_asv"  # asv's folder under a name of ours, whose import runs nothing
ALL = 8000  # an archive up to this many points is examined whole
LEAST = 4000  # points of a larger one, or
SHARE = 100  # one in so many


class Step(NamedTuple):
    """A stretch of a series at one level. Positions are those of the series, missing values counted."""

    start: int
    end: int  # exclusive; the value before it is the last known one
    level: float  # median
    least: float
    error: float  # mean deviation from the level


class Change(NamedTuple):
    """A step up or down: ``ratio`` is the level after over the level before."""

    position: int
    before: float
    after: float

    @property
    def ratio(self) -> float:
        return self.after / self.before if self.before > 0 and self.after > 0 else math.nan


@cache
def _asv() -> Any:
    """The module ``asv.step_detect`` without the package's own import, which loads all of asv's commands."""
    spec = find_spec("asv")
    assert spec is not None, "asv is a dependency"
    package = ModuleSpec(PACKAGE, None, is_package=True)
    package.submodule_search_locations = spec.submodule_search_locations
    sys.modules[PACKAGE] = module_from_spec(package)
    return importlib.import_module(f"{PACKAGE}.step_detect")


def steps(values: Sequence[float | None] | Floats, weights: Floats | None = None) -> list[Step]:
    """The steps of a series; None and NaN are missing. ``weights`` as asv has them, NaN where there is none."""
    series = np.array(values, dtype=np.float64)
    heavy = np.ones(len(series)) if weights is None else weights
    where = np.flatnonzero(np.isfinite(series) & ~(heavy <= 0))
    if not len(where):
        return []
    typical = median(heavy[np.isfinite(heavy)]) if np.any(np.isfinite(heavy)) else 1.0
    heavy = np.where(np.isfinite(heavy), heavy / (typical or 1.0), 1.0)[where]
    right, levels, costs = _segments(series[where], heavy)
    found, left = [], 0
    for end, level, cost in zip(right, levels, costs, strict=True):
        least = float(series[where[left:end]].min())
        found.append(Step(int(where[left]), int(where[end - 1]) + 1, level, least, abs(cost / (end - left))))
        left = end
    return found


def _segments(y: Floats, w: Floats) -> tuple[list[int], list[float], list[float]]:
    """asv's ``solve_potts_autogamma``."""
    asv, n = _asv(), len(y)
    values, weights = y.tolist(), w.tolist()
    cost = asv.get_mu_dist(values, weights)
    penalty = _penalty(n)
    whole = cost.dist(0, n - 1) or 1.0
    best: tuple[float, Any] = (math.inf, None)

    def objective(x: float) -> float:
        nonlocal best
        fit = asv.solve_potts_approx(values, weights, gamma=whole * math.exp(x), mu_dist=cost)
        right, levels, _ = fit
        rest = y - np.repeat(levels, np.diff(right, prepend=0))
        before, after, heavy = rest[:-1], rest[1:], w[1:]
        first: float = abs(float(rest[0])) * weights[0]

        def correlated(rho: float) -> float:
            return first + float(np.abs(after - rho * before) @ heavy)

        rho: float = asv.golden_search(correlated, -1, 1, xatol=0.05, expand_bounds=True)
        jumps = [abs(b - a) for a, b in pairwise(levels)]
        floor = 0.1 * min(jumps) if len(levels) > 2 else 0.001 * min(map(abs, levels))
        found = penalty * len(right) + math.log(max(1e-300, floor) + correlated(rho))
        if found < best[0]:
            best = (found, fit)
        return found

    low = math.log(0.1 / n)
    asv.golden_search(objective, low, 0.0, xatol=abs(low) * 0.1, ftol=0, expand_bounds=True)
    fit: tuple[list[int], list[float], list[float]] = best[1]
    return fit


def _penalty(count: int) -> float:
    """What asv charges for a segment."""
    return 4 * math.log(count) / count


def within_epochs(
    values: Sequence[float | None] | Floats, epochs: Sequence[object], weights: Floats | None = None
) -> list[Step]:
    """The steps of a series that is another one wherever its epoch changes (harness, torch or driver): none crosses."""
    ends = [i for i in range(1, len(values)) if epochs[i] != epochs[i - 1]]
    found = []
    for start, end in pairwise([0, *ends, len(values)]):
        part = steps(values[start:end], None if weights is None else weights[start:end])
        found += [Step(step.start + start, step.end + start, *step[2:]) for step in part]
    return found


def changes(found: Sequence[Step], least: float = LEAST_CHANGE) -> list[Change]:
    """From step to step, where the level moved by more than its noise and by at least this share, up or down."""
    moved = []
    for a, b in pairwise(found):
        needed = max(a.error, b.error, least * min(abs(a.level), abs(b.level)))
        if abs(b.level - a.level) > needed:
            moved.append(Change(b.start, a.level, b.level))
    return moved


def regressions(found: Sequence[Step], least: float = LEAST_CHANGE) -> list[tuple[int, int, float, float]]:
    """asv's regressions of a series: last position before, first after, value before, best value after."""
    positions: list[tuple[int, int, float, float]] | None = _asv().detect_regressions(list(found), least)[2]
    return positions or []


def median(values: Floats) -> float:
    """As ``np.median``, which loads a fifth of numpy for it."""
    ordered = np.sort(values)
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def drift(values: Floats, least: float = LEAST_CHANGE) -> Change | None:
    """The one split of a series that explains most of its movement: where a series is not examined.

    None where the level moves by less than ``least``, or where the split would not lower asv's measure of a fit, the
    logarithm of the deviation plus a penalty for each segment. Gradual movement and several steps are one split here.
    """
    held = values[where := np.flatnonzero(np.isfinite(values))]
    count = len(held)
    if count < 4:
        return None
    at = int(np.abs(np.cumsum(held - held.mean())[:-1]).argmax()) + 1
    before, after = median(held[:at]), median(held[at:])
    whole = float(np.abs(held - median(held)).sum())
    rest = float(np.abs(held[:at] - before).sum() + np.abs(held[at:] - after).sum())
    if abs(after - before) < least * min(abs(before), abs(after)) or rest >= whole * math.exp(-_penalty(count)):
        return None
    return Change(int(where[at]), before, after)


def weights_of(low: Floats, high: Floats) -> Floats:
    """asv's weights of values by their intervals; NaN where there is no interval or it has no width."""
    width = np.abs(high - low)
    found = np.full(len(width), np.nan)
    np.divide(2.0, width, out=found, where=width > 0)
    return found


def moves(values: Floats, bounds: NDArray[np.int64]) -> Floats:
    """How far the level of each series moves against its own noise; a cheap screen, 0 for a flat series.

    The largest excursion of the cumulative sum around the mean, over what noise of the size of the mean difference of
    neighbours would make of it. ``values`` are the series end to end, without missing ones.
    """
    lengths = np.diff(bounds)
    some = lengths > 1
    found = np.zeros(len(lengths))
    if not some.any():
        return found
    starts, lengths = bounds[:-1][some], lengths[some]
    used = np.repeat(np.diff(bounds) > 1, np.diff(bounds))
    held = values[used]
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    centred = held - np.repeat(np.add.reduceat(held, starts) / lengths, lengths)
    total = np.cumsum(centred)
    total -= np.repeat(total[starts] - centred[starts], lengths)
    excursion = np.maximum.reduceat(np.abs(total), starts)
    difference = np.abs(np.diff(held, prepend=held[0]))
    difference[starts] = 0.0
    noise = np.add.reduceat(difference, starts) / (lengths - 1) * np.sqrt(lengths)
    small = np.abs(np.add.reduceat(held, starts)) * 1e-12  # rounding, not movement
    found[some] = np.where(excursion > small, excursion / np.maximum(noise, 1e-300), 0.0)
    return found


def chosen(values: Floats, bounds: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The series to look for steps in: all of a small archive, else those that move most, within a number of points."""
    lengths = np.diff(bounds)
    limit = ALL if len(values) <= ALL else max(LEAST, len(values) // SHARE)
    order = np.argsort(-moves(values, bounds), kind="stable")
    found = np.zeros(len(lengths), dtype=np.bool_)
    found[order[np.cumsum(lengths[order]) <= limit]] = True
    return found
