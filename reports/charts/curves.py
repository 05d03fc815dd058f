"""Convergence curves: what a training run reports over its steps (loss, error, gradient norm), a line per contender."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from archbench.formatting import significant
from archbench.reports.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    UPRIGHT,
    WIDTH,
    Chart,
    drawn,
    few,
    noted,
    ticks,
    y_scale,
)
from archbench.reports.row import Row

MAX_CHARTS = 16
MAX_POINTS = 240  # of a line: more than the picture has pixels to tell apart


def curves(rows: Sequence[Row]) -> list[Chart]:
    """A chart per case and series name, at most sixteen, those of the quality first.

    The axis is the step, or what the name says: "divergence over learning rate". Logarithmic in y where all values are
    positive.
    """
    quality = {row.quality for row in rows}
    found: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = defaultdict(dict)
    for row in rows:
        for name, points in row.series.items():
            if points:
                found[name, row.case][row.contender] = sorted(points)
    chosen = sorted(found, key=lambda key: (key[0] not in quality, *key))[:MAX_CHARTS]
    return [_chart(name, case, found[name, case]) for name, case in chosen]


def _chart(name: str, case: str, lines: dict[str, list[tuple[float, float]]]) -> Chart:
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    left, right = min(xs), max(xs)
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > 3
    low, high = min(ys), max(ys)
    log = y_scale(low / 1.05, high * 1.05) if logarithmic else None

    def x(value: float) -> float:
        share = (value - left) / (right - left) if right > left else 0.5
        return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 1)

    def y(value: float) -> float:
        if log is not None:
            return log.at(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return round(HEIGHT - BOTTOM + (TOP - HEIGHT + BOTTOM) * share, 1)

    series = []
    for contender, points in lines.items():
        step = max(1, -(-len(points) // MAX_POINTS))
        kept = [*points[::step], *([points[-1]] if (len(points) - 1) % step else [])]
        series.append((contender, [(x(a), y(b), f"{a:g}: {significant(b)}") for a, b in kept]))
    series.sort(key=lambda entry: (entry[1][-1][1], entry[0]))
    y_ticks = ticks(low, high) if logarithmic else [low + (high - low) * i / 4 for i in range(5)]
    drawn_lines = drawn(series)
    return Chart(
        title=f"{name}: {case}",
        note=noted("Logarithmic in y." if logarithmic else "", drawn_lines),
        x_label=name.partition(" over ")[2] or "step",
        y_label=name,
        lines=drawn_lines,
        guide=[],
        guide_label="",
        x_ticks=[(x(value), f"{value:.5g}") for value in (left + (right - left) * i / 4 for i in range(5))],
        y_ticks=few([(y(tick), significant(tick)) for tick in y_ticks], UPRIGHT),
    )
