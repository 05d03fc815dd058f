"""The export: the rows of the leaderboard as JSON, CSV or Markdown, all with the same numbers.

The JSON is a contract (docs/export-format.md): schema 1 gains fields, it never changes or loses one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archbench.cells import Metric
from archbench.formatting import quantity, ratio, seconds, significant
from archbench.reports.load import Problem
from archbench.reports.row import Row
from archbench.reports.rows import Results, load
from archbench.reports.words import said, words

SCHEMA = 1
# The metrics that are columns of their own wherever rows are shown; a track may add others.
MAIN = ("latency_s", "slowdown", "peak_bytes", "error", "energy_j")
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_dict(row: Row) -> dict[str, Any]:
    """A row of the JSON export."""
    return {
        "machine": row.machine,
        "commit": row.commit,
        "track": row.track,
        "case": row.case,
        "contender": row.contender,
        "status": row.status,
        "reason": row.reason,
        "rank": list(row.rank) if row.rank else None,
        "baseline": row.baseline,
        "metrics": {
            name: {"value": m.value, "ci": list(m.ci) if m.ci else None, "n": m.n, "unit": m.unit}
            for name, m in sorted(row.metrics.items())
        },
        "limit_fraction": row.limit_fraction,
        "host": dict(sorted(row.host.items())),
        "reproduce": row.reproduce,
        "verified": row.verified.as_dict() if row.verified else None,
        "origin": row.origin,
        "source": row.source,
    }


def as_json(results: Results) -> str:
    rows = [as_dict(row) for row in results.all_rows()]
    return (
        json.dumps({"schema": SCHEMA, "generated_from": results.sources, "rows": rows}, indent=1, allow_nan=False)
        + "\n"
    )


def _cell(value: object) -> str:
    """Text a spreadsheet takes as text: what looks like a formula gets a quote before it."""
    text = "" if value is None else str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(FORMULA) else text


def as_csv(results: Results) -> str:
    """One line a row; each metric has its value, interval and n."""
    return csv_of(list(results.all_rows()))


def csv_of(rows: Sequence[Row]) -> str:
    """The CSV of these rows; its columns are the metrics they have."""
    names = sorted({name for row in rows for name in row.metrics})
    header = ["machine", "commit", "track", "case", "contender", "status", "reason", "rank_lo", "rank_hi", "baseline"]
    for name in names:
        header += [name, f"{name}_ci_lo", f"{name}_ci_hi", f"{name}_n", f"{name}_unit"]
    facts = sorted({fact for row in rows for fact in row.host if fact.startswith("data.")})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*map(_cell, header), "limit_fraction", "reproduce", "origin", "source", *facts])
    for row in rows:
        line: list[object] = [row.machine, row.commit, row.track, row.case, row.contender, row.status, row.reason]
        line += [*(row.rank or (None, None)), row.baseline]
        for name in names:
            metric = row.metrics.get(name)
            line += [metric.value, *(metric.ci or (None, None)), metric.n, metric.unit] if metric else [None] * 5
        line += [row.limit_fraction, row.reproduce, row.origin, row.source, *map(row.host.get, facts)]
        writer.writerow([_cell(value) for value in line])
    return out.getvalue()


def _markdown(text: str) -> str:
    """Text that stays inside its table cell and is no markup."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def with_interval(metric: Metric | None) -> str:
    """``0.312 (0.301-0.323)``."""
    if metric is None:
        return ""
    text = quantity(metric.value, metric.unit)
    return f"{text} ({significant(metric.ci[0])}-{significant(metric.ci[1])})" if metric.ci else text


def _quality(row: Row) -> str:
    return f"{row.quality_name} {with_interval(row.metrics.get(row.quality))}" if row.quality in row.metrics else ""


def also(row: Row) -> list[str]:
    """What a row holds beside the columns every track has, in words: "bubble share 20.3 %"."""
    kept = sorted(name for name in row.metrics if name not in (*MAIN, row.quality))
    return [f"{words(name)} {said(name, row.metrics[name])}" for name in kept]


def rank_text(rank: Sequence[int] | None) -> str:
    """``1``, ``2-4``, or nothing."""
    if rank is None:
        return ""
    return str(rank[0]) if rank[0] == rank[1] else f"{rank[0]}-{rank[1]}"


def as_markdown(results: Results) -> str:
    """A table for people: formatted numbers. Its last column is there where a row has metrics of its track's own."""
    rows = list(results.all_rows())
    more = any(also(row) for row in rows)
    head = (
        "| machine | commit | track | case | rank | contender | time | slowdown | quality "
        "| of limit | memory | status |"
    )
    rule = "|---|---|---|---|---|---|---:|---:|---:|---:|---:|---|"
    lines = [head + " also measured |", rule + "---|"] if more else [head, rule]
    for row in rows:
        time, slowdown, peak = (row.metrics.get(name) for name in ("latency_s", "slowdown", "peak_bytes"))
        cells = [
            row.machine,
            row.commit[:8],
            row.track,
            row.case,
            rank_text(row.rank),
            row.contender,
            seconds(time.value) if time else "",
            ratio(slowdown.value, slowdown.ci) if slowdown else "",
            _quality(row),
            f"{row.limit_fraction:.0%}" if row.limit_fraction is not None else "",
            quantity(peak.value, "B") if peak else "",
            row.status if not row.reason else f"{row.status}: {row.reason}",
            *([", ".join(also(row))] if more else []),
        ]
        lines.append("| " + " | ".join(map(_markdown, cells)) + " |")
    return "\n".join(lines) + "\n"


FORMATS = {"json": as_json, "csv": as_csv, "md": as_markdown}


def export(folder: Path, format: str) -> tuple[str, list[Problem]]:
    """The rows of a results folder as text, and what did not count. Raises NoResults, KeyError for a format."""
    results = load(folder)
    return FORMATS[format](results), results.problems
