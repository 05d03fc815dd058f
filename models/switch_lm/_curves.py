"""Two runs' curves beside each other: who was where after how many steps, how much time, how many operations.

A curve is known at its evaluations; between them it is read off straight lines. All of this is of the same windows of
the test text.
"""

from __future__ import annotations

from archbench.training import Curve

GRID = 20  # points of a curve over time, for each time the dense model's run lasts


def at(curve: Curve, step: float) -> float:
    """The value at a step; before the first and after the last point theirs."""
    before = curve[0]
    for point in curve:
        if point[0] >= step:
            share = (step - before[0]) / (point[0] - before[0]) if point[0] > before[0] else 1.0
            share = min(1.0, max(0.0, share))
            return (1 - share) * before[1] + share * point[1]  # exact at both points
        before = point
    return curve[-1][1]


def reaches(curve: Curve, value: float) -> float | None:
    """The step at which a curve first comes down to a value, or None."""
    before = curve[0]
    if before[1] <= value:
        return before[0]
    for point in curve[1:]:
        if point[1] <= value:
            return before[0] + (before[1] - value) / (before[1] - point[1]) * (point[0] - before[0])
        before = point
    return None


def over_time(curve: Curve, slowdown: float) -> Curve:
    """The curve over time, in runs of the dense model: at points that are the same for every seed.

    ``slowdown`` is the time of a step over that of the dense model's; a curve begins and ends where its own does.
    """
    first, last = curve[0][0], curve[-1][0]
    grid = [number / GRID for number in range(1, int(GRID * slowdown) + 1)]
    return [(x, at(curve, x / slowdown * last)) for x in grid if x / slowdown * last >= first]
