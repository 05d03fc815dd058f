"""Ranks as intervals: who is faster than whom, and where nobody can tell.

A group is one case on one machine at one commit. Everybody in it was paired with the same baseline, so their log ratios
compare. Two are apart when their intervals do not cross and they differ by more than the group's A/A band.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from archbench.cells import Metric
from archbench.stats import Interval, apart, geometric_mean


def log_interval(metric: Metric) -> Interval:
    """A ratio with its interval, in log space; without an interval it is as wide as nothing is known: infinitely."""
    low, high = metric.ci or (0.0, math.inf)
    low_log = math.log(low) if low > 0 else -math.inf
    return Interval(math.log(metric.value), low_log, math.log(high) if high < math.inf else math.inf, metric.n)


def band(controls: Sequence[Metric]) -> float:
    """The A/A band of a group in log units: the largest difference the baseline showed against itself."""
    return max((abs(math.log(control.value)) for control in controls), default=0.0)


def ranks(slowdowns: Mapping[str, Interval], width: float) -> dict[str, tuple[int, int]]:
    """Rank intervals: 1 + how many are surely faster, and the number of all less those surely slower."""
    found = {}
    for name, own in slowdowns.items():
        others = [other for other_name, other in slowdowns.items() if other_name != name and apart(own, other, width)]
        faster = sum(other.value < own.value for other in others)
        found[name] = (1 + faster, len(slowdowns) - (len(others) - faster))
    return found


COMPARED = 100  # contenders that are compared in pairs; whoever comes after shares what is left of the ranks


@dataclass(frozen=True)
class Overall:
    """A contender over all cases; ``mean`` and ``rank`` are None where it lacks a case."""

    name: str
    mean: Interval | None
    covered: int
    rank: tuple[int, int] | None


def overall(
    by_contender: Mapping[str, Mapping[str, Interval]], cases: Sequence[str], width: float = 0.0
) -> list[Overall]:
    """Contenders by the geometric mean of their slowdowns over cases, complete ones first.

    Two are ranked apart when the mean of their differences, case by case, is surely not zero and larger than ``width``,
    the A/A band: a case that is hard for everybody then says nothing about who is faster, and their own intervals,
    which hold the spread of the cases, may well cross.
    """
    complete = {name: found for name, found in by_contender.items() if cases and all(case in found for case in cases)}
    means = {name: geometric_mean([found[case] for case in cases]) for name, found in complete.items()}
    faster: Counter[str] = Counter()  # by contender: how many are surely faster, and slower, than it
    slower: Counter[str] = Counter()
    best = sorted(complete, key=lambda name: (means[name].value, name))
    for a, b in combinations(sorted(best[:COMPARED]), 2):
        difference = _mean_difference(complete[a], complete[b], cases)
        if abs(difference.value) <= width:
            continue
        if difference.hi < 0:
            faster[b] += 1
            slower[a] += 1
        elif difference.lo > 0:
            faster[a] += 1
            slower[b] += 1
    found = []
    for name, intervals in by_contender.items():
        place = (1 + faster[name], len(complete) - slower[name]) if name in complete else None
        if name in best[COMPARED:]:
            place = (COMPARED + 1, len(complete))
        covered = sum(case in intervals for case in cases)
        found.append(Overall(name, means.get(name), covered, place))
    return sorted(found, key=lambda o: (o.mean is None, o.mean.value if o.mean else 0.0, -o.covered, o.name))


def _mean_difference(a: Mapping[str, Interval], b: Mapping[str, Interval], cases: Sequence[str]) -> Interval:
    """Mean over the cases of log a - log b, with its interval."""
    differences = []
    for case in cases:
        width = math.hypot(a[case].halfwidth, b[case].halfwidth)
        value = a[case].value - b[case].value
        differences.append(Interval(value, value - width, value + width, min(a[case].n, b[case].n)))
    return geometric_mean(differences)
