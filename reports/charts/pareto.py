"""What speed costs: each contender's slowdown against its memory, energy or error, with the front of the undominated.

Positions are geometric means over the cases that all shown contenders have, as ratios to the baseline; error and a
training track's quality are shown as they are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from archbench.formatting import significant
from archbench.reports.charts import ACROSS, UPRIGHT, Chart, drawn, few, noted, ticks, x_scale, y_scale
from archbench.reports.row import Row, is_rankable

LABELS = {"peak_bytes": "memory", "energy_j": "energy"}  # others by their name: "test_error_ratio"
MIN_CONTENDERS = 3


def pareto(rows: Sequence[Row], metric: str, looks: Mapping[str, int]) -> Chart | None:
    """Slowdown (x) against another metric (y), both relative to the baseline; lower left is better.

    None where fewer than three contenders share the baseline's cases, or nobody differs in the metric.
    """
    relative = _relative(rows, metric)
    if len(relative) < MIN_CONTENDERS:
        return None
    xs, ys = [x for x, _ in relative.values()], [y for _, y in relative.values()]
    if max(ys) / min(ys) < 1.01:
        return None
    x, y = x_scale(min(xs) / 1.15, max(xs) * 1.15), y_scale(min(ys) / 1.3, max(ys) * 1.3)
    label = LABELS.get(metric, metric.removesuffix("_ratio").replace("_", " "))
    series = [
        (name, [(x.at(a), y.at(b), f"{significant(a)}× the time, {significant(b)}× the {label}")])
        for name, (a, b) in relative.items()
    ]
    series.sort(key=lambda entry: (entry[1][0][1], entry[0]))
    lines = drawn(series, looks)
    return Chart(
        title=f"{label.capitalize()} against time",
        note=noted(
            f"Relative to the baseline, geometric means over the shared cases, both axes logarithmic; lower left is "
            f"better. The line joins those nobody beats in both time and {label}.",
            lines,
        ),
        x_label="slowdown",
        y_label=f"{label} relative to the baseline",
        lines=lines,
        guide=[(x.at(a), y.at(b)) for a, b in _stairs(front(list(relative.values())))],
        guide_label="",
        x_ticks=few([(x.at(tick), f"{significant(tick, 2)}×") for tick in ticks(x.low, x.high)], ACROSS),
        y_ticks=few([(y.at(tick), f"{significant(tick, 2)}×") for tick in ticks(y.low, y.high)], UPRIGHT),
        scatter=True,
    )


def _relative(rows: Sequence[Row], metric: str) -> dict[str, tuple[float, float]]:
    by_name: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if is_rankable(row) and {metric, "slowdown"} <= row.metrics.keys() and row.metrics[metric].value > 0:
            by_name[row.contender][row.case] = row
    base = next((by_name[row.baseline] for row in rows if row.baseline in by_name), None)
    if base is None:
        return {}
    complete = {name: own for name, own in by_name.items() if own.keys() >= base.keys()}

    def mean(values: Sequence[float]) -> float:
        return math.exp(sum(map(math.log, values)) / len(values))

    return {
        name: (
            mean([own[case].metrics["slowdown"].value for case in base]),
            mean([own[case].metrics[metric].value / base[case].metrics[metric].value for case in base]),
        )
        for name, own in sorted(complete.items())
    }


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points no other one beats in both coordinates (lower is better), from left to right."""
    found: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not found or point[1] < found[-1][1]:
            found.append(point)
    return found


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    steps: list[tuple[float, float]] = []
    for point in points:
        if steps:
            steps.append((point[0], steps[-1][1]))
        steps.append(point)
    return steps
