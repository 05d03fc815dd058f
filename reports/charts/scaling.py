"""Charts as data for the inline-SVG templates: positions are computed here, drawing is the template's.

Own SVG because it prints, needs no script and costs a few kilobytes. Lines differ by colour, dash and marker, so that
colour is never alone; the palette is Okabe and Ito's, which colour-blind readers tell apart.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archbench.cells import Scalar
from archbench.formatting import seconds, significant
from archbench.reports.rows import Row

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 170, 14, 44
MARKERS = ("circle", "square", "triangle", "diamond")
COLOURS = 7
MIN_POINTS = 3


@dataclass(frozen=True)
class Line:
    """One contender over the axis."""

    name: str
    points: list[tuple[float, float, str]]  # x, y in the picture, and what to say about the point
    colour: int
    dash: int
    marker: str
    label_y: float


@dataclass(frozen=True)
class Chart:
    """Latency over one axis of the cases, both logarithmic."""

    title: str
    axis: str
    fixed: str  # what all points share
    lines: list[Line]
    limit: list[tuple[float, float]]  # the floor, where it is known
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    width: int = WIDTH
    height: int = HEIGHT


def axis_and_cases(cases: Mapping[str, Mapping[str, Scalar]]) -> tuple[str, list[str]] | None:
    """The numeric axis with the longest series of cases that share all other axes, and that series by its value.

    None where no axis has at least three values.
    """
    best: tuple[str, list[str]] | None = None
    for axis in sorted({name for axes in cases.values() for name in axes}):
        series: dict[tuple[tuple[str, Scalar], ...], list[tuple[float, str]]] = defaultdict(list)
        for slug, axes in cases.items():
            value = axes.get(axis)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
                rest = tuple(sorted((k, v) for k, v in axes.items() if k != axis))
                series[rest].append((float(value), slug))
        for points in series.values():
            if len({value for value, _ in points}) >= max(MIN_POINTS, len(best[1]) + 1 if best else 0):
                best = (axis, [slug for _, slug in sorted(points)])
    return best


def _ticks(low: float, high: float, step: float) -> list[float]:
    """Powers of ``step`` within the range."""
    first, last = math.ceil(math.log(low, step) - 1e-9), math.floor(math.log(high, step) + 1e-9)
    return [step**i for i in range(first, last + 1)]


def scaling(cases: Mapping[str, Mapping[str, Scalar]], rows: Sequence[Row]) -> Chart | None:
    """Latency over the axis the track's cases scale along, one line per contender, the physical limit dashed."""
    measured = [row for row in rows if row.status == "ok" and "latency_s" in row.metrics and row.case in cases]
    found = axis_and_cases({slug: cases[slug] for slug in {row.case for row in measured}})
    if found is None:
        return None
    axis, slugs = found
    values = {slug: float(cases[slug][axis] or 0) for slug in slugs}
    chosen = [row for row in measured if row.case in values]
    times = [row.metrics["latency_s"].value for row in chosen]
    floors = {
        row.case: row.metrics["latency_s"].value * row.limit_fraction
        for row in chosen
        if row.limit_fraction is not None
    }
    low, high = min([*times, *floors.values()]) * 0.8, max(times) * 1.25
    x_low, x_high = min(values.values()), max(values.values())

    def x(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * math.log(value / x_low) / math.log(x_high / x_low), 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - math.log(value / low) / math.log(high / low)), 1)

    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in chosen:
        by_name[row.contender].append(row)
    for series in by_name.values():
        series.sort(key=lambda row: values[row.case])
    order = sorted(by_name, key=lambda name: (-by_name[name][-1].metrics["latency_s"].value, name))
    labels = _spread([y(by_name[name][-1].metrics["latency_s"].value) for name in order])
    lines = []
    for i, name in enumerate(order):
        points = []
        for row in by_name[name]:
            time = row.metrics["latency_s"].value
            points.append((x(values[row.case]), y(time), f"{name}, {axis} {cases[row.case][axis]}: {seconds(time)}"))
        lines.append(Line(name, points, i % COLOURS, i // COLOURS, MARKERS[i % len(MARKERS)], labels[i]))
    fixed = ", ".join(f"{k} {v}" for k, v in sorted(cases[slugs[0]].items()) if k != axis)
    return Chart(
        title=f"time over {axis}",
        axis=axis,
        fixed=fixed,
        lines=lines,
        limit=[(x(values[slug]), y(floors[slug])) for slug in slugs if slug in floors],
        x_ticks=[(x(value), significant(value)) for value in sorted(set(values.values()))],
        y_ticks=[(y(tick), seconds(tick)) for tick in _ticks(low, high, 10)],
    )


def _spread(wanted: list[float], gap: float = 15) -> list[float]:
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
