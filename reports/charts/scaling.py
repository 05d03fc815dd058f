"""Latency over the size the track's cases scale along, with the machine's limit drawn in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from archbench.cells import Scalar
from archbench.formatting import seconds
from archbench.reports.charts import ACROSS, UPRIGHT, Chart, drawn, few, noted, ticks, x_scale, y_scale
from archbench.reports.row import Row
from archbench.reports.words import one

MIN_POINTS = 3


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


def scaling(
    cases: Mapping[str, Mapping[str, Scalar]], rows: Sequence[Row], looks: Mapping[str, int], item: str = "call"
) -> Chart | None:
    """One line per contender, both axes logarithmic; None where the measured cases have no axis to scale along."""
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
        if row.limit_fraction is not None and row.limit_fraction > 0
    }
    low, high = min([*times, *floors.values()]) * 0.8, max(times) * 1.25
    x, y = x_scale(min(values.values()), max(values.values())), y_scale(low, high)
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in chosen:
        by_name[row.contender].append(row)
    series = []
    for name, own in by_name.items():
        points = []
        for row in sorted(own, key=lambda row: values[row.case]):
            time = row.metrics["latency_s"].value
            said = f"{axis} {cases[row.case][axis]}: {seconds(time)}"
            points.append((x.at(values[row.case]), y.at(time), said))
        series.append((name, points))
    series.sort(key=lambda entry: (entry[1][-1][1], entry[0]))
    named = axis.replace("_", " ")
    fixed = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in sorted(cases[slugs[0]].items()) if k != axis)
    lines = drawn(series, looks, {row.contender for row in chosen if row.note.differs is not None})
    return Chart(
        title=f"Time over {named}",
        note=noted(f"Both axes logarithmic; {fixed}." if fixed else "Both axes logarithmic.", lines),
        x_label=named,
        y_label=f"time {one(item)}",
        lines=lines,
        guide=[(x.at(values[slug]), y.at(floors[slug])) for slug in slugs if slug in floors],
        guide_label="limit of this machine",
        x_ticks=few([(x.at(value), f"{value:g}") for value in sorted(set(values.values()))], ACROSS),
        y_ticks=few([(y.at(tick), seconds(tick)) for tick in ticks(low, high)], UPRIGHT),
    )
