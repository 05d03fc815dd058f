"""A line small enough for a table cell: a series over its commits, with its steps and epochs marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, MARGIN = 220, 34, 3


@dataclass(frozen=True)
class Spark:
    """Positions in a picture of 220 by 34: a line per epoch, and where steps and epochs are."""

    lines: list[list[tuple[float, float]]]
    epochs: list[float]
    steps: list[float]


def spark(values: Sequence[float | None], *, epochs: Sequence[int] = (), steps: Sequence[int] = ()) -> Spark:
    """Values from left to right, missing ones skipped; ``epochs`` and ``steps`` are the positions where one begins."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    last = max(1, len(values) - 1)

    def x(position: float) -> float:
        return round(MARGIN + (WIDTH - 2 * MARGIN) * position / last, 1)

    def y(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share, 1)

    lines = []
    for start, end in zip([0, *epochs], [*epochs, len(values)], strict=True):
        points = [
            (x(i), y(value)) for i in range(start, end) if (value := values[i]) is not None and math.isfinite(value)
        ]
        if points:
            lines.append(points)
    return Spark(lines, [x(position - 0.5) for position in epochs], [x(position - 0.5) for position in steps])
