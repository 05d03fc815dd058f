"""Ranks as intervals: who is faster than whom, and where nobody can tell.

A group is one case on one machine at one commit. Everybody in it was paired with the same baseline, so their log ratios
compare. Two are apart when their intervals do not cross and they differ by more than the group's A/A band.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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


def overall(
    by_contender: Mapping[str, Mapping[str, Interval]], cases: Sequence[str]
) -> list[tuple[str, Interval | None, int]]:
    """Geometric mean over cases with its interval and how many cases it covers; None where a case is missing.

    Sorted: complete ones by mean, then the others by coverage and name.
    """
    found: list[tuple[str, Interval | None, int]] = []
    for name, intervals in by_contender.items():
        covered = [intervals[case] for case in cases if case in intervals]
        complete = len(covered) == len(cases) and len(covered) > 0
        found.append((name, geometric_mean(covered) if complete else None, len(covered)))
    return sorted(found, key=lambda f: (f[1] is None, f[1].value if f[1] else 0.0, -f[2], f[0]))
