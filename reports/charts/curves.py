"""Curves: what a cell reports over its steps (loss, error) or over something else (memory over batch), contender by
contender.

A curve's name says what its axes are: ``peak_bytes_over_batch`` is drawn in bytes over the batch; a name that says no
more than ``loss`` is over steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from archbench.formatting import quantity
from archbench.reports.charts import (
    ACROSS,
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    UPRIGHT,
    WIDTH,
    Chart,
    drawn,
    even_ticks,
    few,
    noted,
    ticks,
    y_scale,
)
from archbench.reports.row import Row
from archbench.reports.words import axes_of, words
from archbench.training import unit_of

MAX_CHARTS = 24
MAX_POINTS = 240  # of a line: more than the picture has pixels to tell apart
# Values that differ by more than this are on a logarithmic axis. Bytes are read as so many more for each item: a line.
WIDE = {"B": 100.0}
WIDE_ELSE = 3.0


def curves(rows: Sequence[Row], looks: Mapping[str, int]) -> list[Chart]:
    """A chart per case and series name, at most ``MAX_CHARTS``, those of the quality first.

    Logarithmic in y where all values are positive and far apart.
    """
    quality = {row.quality for row in rows}
    found: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = defaultdict(dict)
    for row in rows:
        for name, points in row.series.items():
            if points and row.contender in looks:
                found[name, row.case][row.contender] = sorted(points)
    chosen = sorted(found, key=lambda key: (key[0] not in quality, *key))[:MAX_CHARTS]
    return [_chart(name, case, found[name, case], looks) for name, case in chosen]


def _chart(name: str, case: str, lines: dict[str, list[tuple[float, float]]], looks: Mapping[str, int]) -> Chart:
    value, over = axes_of(name)
    unit = unit_of(value)
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    left, right = min(xs), max(xs)
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > WIDE.get(unit, WIDE_ELSE)
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
        series.append((contender, [(x(a), y(b), f"{over} {a:g}: {quantity(b, unit)}") for a, b in kept]))
    series.sort(key=lambda entry: (entry[1][-1][1], entry[0]))
    y_ticks = ticks(low, high, 2.0 if unit == "B" else 10.0) if logarithmic else even_ticks(high, unit, low=low)
    drawn_lines = drawn(series, looks)
    x_ticks = even_ticks(right, low=left)
    if all(value.is_integer() for value in xs):  # there is no rank 0.5
        x_ticks = [tick for tick in x_ticks if tick.is_integer()]
    said = f"{words(value)} bytes" if unit == "B" else words(value)
    return Chart(
        title=f"{said[:1].upper()}{said[1:]}{'' if over == 'step' else f' over {over}'}: {case}",
        note=noted("Logarithmic in y." if logarithmic else "", drawn_lines),
        x_label=over,
        y_label=said,
        lines=drawn_lines,
        guide=[],
        guide_label="",
        x_ticks=few([(x(tick), f"{tick:.5g}") for tick in x_ticks], ACROSS),
        y_ticks=few([(y(tick), quantity(tick, unit)) for tick in y_ticks], UPRIGHT),
    )
