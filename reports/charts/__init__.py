"""Charts as data for the inline-SVG templates: positions are computed here, drawing is the template's.

Own SVG because it prints, needs no script and costs a few kilobytes. Lines differ by colour, dash and marker, so that
colour is never alone; the palette is Okabe and Ito's, which colour-blind readers tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from archbench.reports.rows import Row

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 170, 14, 44
MARKERS = ("circle", "square", "triangle", "diamond")
COLOURS = 7
MARKED = 12  # markers along a line: enough to follow it, also where it has hundreds of points


@dataclass(frozen=True)
class Line:
    """One contender over the axis."""

    name: str
    points: list[tuple[float, float, str]]  # x, y in the picture, and what to say about the point
    marked: list[tuple[float, float, str]]  # those of them that get a marker, the last among them
    colour: int
    dash: int
    marker: str
    label_y: float


@dataclass(frozen=True)
class Chart:
    """Lines over an axis, or points with names beside them where ``scatter``."""

    title: str
    note: str  # below the picture: what all points share, which axes are logarithmic
    x_label: str
    y_label: str
    lines: list[Line]
    guide: list[tuple[float, float]]  # the physical limit, or the front of what is not dominated
    guide_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    scatter: bool = False
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class LogScale:
    """Places positive values on a logarithmic axis of the picture, from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        if self.high <= self.low:
            return round((self.start + self.end) / 2, 1)
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + (self.end - self.start) * share, 1)


def x_scale(low: float, high: float) -> LogScale:
    return LogScale(low, high, LEFT, WIDTH - RIGHT)


def y_scale(low: float, high: float) -> LogScale:
    return LogScale(low, high, HEIGHT - BOTTOM, TOP)


def ticks(low: float, high: float, base: float = 10.0) -> list[float]:
    """Round numbers within a range for a logarithmic axis: powers of ``base``, with 2 and 5 between where few."""
    first, last = math.floor(math.log(low, base)) - 1, math.ceil(math.log(high, base)) + 1
    powers = [base**i for i in range(first, last + 1)]
    found = [p for p in powers if low <= p <= high]
    if len(found) < 3 and base == 10.0:
        found = [m * p for p in powers for m in (1, 2, 5) if low <= m * p <= high]
    return found


def spread(wanted: Sequence[float], gap: float = 15) -> list[float]:
    """Label heights near the wanted ones (ascending), at least a gap apart and inside the picture."""
    placed: list[float] = []
    for height in wanted:
        placed.append(max(height, placed[-1] + gap if placed else TOP + 4))
    over = placed[-1] - (HEIGHT - BOTTOM) if placed else 0
    if over > 0:
        for i in range(len(placed) - 1, -1, -1):
            limit = HEIGHT - BOTTOM if i == len(placed) - 1 else placed[i + 1] - gap
            placed[i] = min(placed[i], limit)
    return [round(height, 1) for height in placed]


def drawn(series: Sequence[tuple[str, list[tuple[float, float, str]]]]) -> list[Line]:
    """Lines with their looks and label heights; ``series`` is ordered by where each line ends, highest first."""
    labels = spread([points[-1][1] for _, points in series])
    return [
        Line(
            name,
            points,
            points[:: -max(1, -(-len(points) // MARKED))][::-1],
            i % COLOURS,
            i // COLOURS,
            MARKERS[i % len(MARKERS)],
            labels[i],
        )
        for i, (name, points) in enumerate(series)
    ]


@dataclass(frozen=True)
class RatioScale:
    """Places ratios on a logarithmic strip of 0 to 100, with 1x marked."""

    low: float
    high: float

    @classmethod
    def over(cls, rows: Sequence[Row]) -> RatioScale:
        """A scale that holds every interval of the rows, and 1x."""
        ends = [1.0]
        for row in rows:
            metric = row.metrics.get("slowdown")
            if metric:
                ends += [metric.value, *(end for end in metric.ci or () if end > 0)]
        return cls(min(ends) / 1.1, max(ends) * 1.1)

    def at(self, ratio: float) -> float:
        position = 100 * math.log(max(ratio, self.low) / self.low) / math.log(self.high / self.low)
        return round(min(100.0, max(0.0, position)), 2)
