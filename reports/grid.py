"""A table of rows in two shapes: the first hundred as HTML, all of them as columns of data for the script.

The data is columnar (a list per field, texts as indices into a list of distinct ones, a field that is the same in every
row once), because a page of ten thousand rows is then a tenth of the size and ready before a table of that length could
be laid out. ``static/grid.js`` draws, sorts, filters and exports from it; both sides print the same texts, which
``tests/reports/test_browser.py`` compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archbench.cells import Metric, Scalar
from archbench.formatting import quantity, ratio, seconds
from archbench.reports.charts import RatioScale
from archbench.reports.export import also, rank_text, with_interval
from archbench.reports.row import Row, is_rankable
from archbench.reports.words import is_share, one, words

HTML_ROWS = 100
TEXTS: dict[str, Callable[[Row], str]] = {
    "machine": lambda row: row.machine,
    "commit": lambda row: row.commit,
    "track": lambda row: row.track,
    "case": lambda row: row.case,
    "contender": lambda row: row.contender,
    "status": lambda row: row.status,
    "reason": lambda row: row.reason,
    "baseline": lambda row: row.baseline,
    "family": lambda row: row.note.family,
    "differs": lambda row: row.note.differs or "",
    "quality": lambda row: row.quality,
    "origin": lambda row: row.origin,
    "source": lambda row: row.source,
    "verified": lambda row: row.verified.words if row.verified else "",
}
SIGNED = "the run came in a commit that this machine's key signed, and is still what was signed"


@dataclass(frozen=True)
class Column:
    """A column of the table. ``shown`` ones are there from the start, the others on demand."""

    key: str
    label: str
    title: str = ""
    shown: bool = True


@dataclass(frozen=True)
class Line:
    """A row as a table prints it."""

    row: Row
    rank: str
    time: str
    slowdown: str
    quality: str
    strip: tuple[float, float, float] | None  # lower end, centre, upper end on 0..100
    limit: str
    limit_share: float | None
    memory: str
    energy: str
    others: str  # what else was measured: name and number, comma by comma
    count: int  # of these
    leads: bool  # the first row of its case and machine


@dataclass(frozen=True)
class Grid:
    """A table: its columns, the lines that are HTML, and the data of all rows."""

    caption: str
    columns: list[Column]
    lines: list[Line]
    data: dict[str, Any]
    count: int
    one: float  # where 1x is on the strips

    @property
    def offered(self) -> list[tuple[str, str, str, bool]]:
        return [(column.key, column.label, column.title, column.shown) for column in self.columns]


def text_of(metrics: Mapping[str, Metric], name: str) -> str:
    metric = metrics.get(name)
    return "" if metric is None else quantity(metric.value, metric.unit)


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def line(row: Row, scale: RatioScale, leads: bool = False) -> Line:
    slowdown, time = row.metrics.get("slowdown"), row.metrics.get("latency_s")
    strip = None
    if slowdown is not None:
        low, high = slowdown.ci or (slowdown.value, slowdown.value)
        strip = (scale.at(low), scale.at(slowdown.value), scale.at(high))
    others = also(row)
    return Line(
        row=row,
        rank=rank_text(row.rank),
        time=seconds(time.value) if time else "",
        slowdown=ratio(slowdown.value, slowdown.ci) if slowdown else "",
        quality=with_interval(row.metrics.get(row.quality)),
        strip=strip,
        limit=percent(row.limit_fraction),
        limit_share=None if row.limit_fraction is None else round(100 * min(1.0, row.limit_fraction), 1),
        memory=text_of(row.metrics, "peak_bytes"),
        energy=text_of(row.metrics, "energy_j"),
        others=", ".join(others),
        count=len(others),
        leads=leads,
    )


def grid(
    caption: str,
    rows: Sequence[Row],
    cases: Mapping[str, Mapping[str, Scalar]],
    *,
    here: str | None = None,
    fixed: Sequence[str] = (),
    item: str = "call",
) -> Grid:
    """The table of ``rows`` in their order of reading: machine, case, rank.

    ``fixed`` columns are left out; times and energy are per ``item``.
    """
    place = {slug: i for i, slug in enumerate(cases)}
    ordered = sorted(
        rows,
        key=lambda row: (
            row.machine != here,
            row.machine,
            row.track,
            place.get(row.case, len(place)),
            row.case,
            row.commit,
            row.note.differs is not None,
            row.rank is None,
            row.metrics[row.ranking].value if row.ranking in row.metrics else float("inf"),
            row.contender,
        ),
    )
    # Contenders of another function would stretch the scale until no other strip could be read; theirs are cut off.
    scale = RatioScale.over([row for row in rows if is_rankable(row)] or rows)
    lines: list[Line] = []
    before: tuple[str, ...] | None = None
    for row in ordered[:HTML_ROWS]:
        group = (row.machine, row.commit, row.track, row.case)
        lines.append(line(row, scale, group != before))
        before = group
    data = _columnar(ordered, cases) | {"strip": [scale.low, scale.high], "here": here}
    columns = [column for column in _columns(rows, item) if column.key not in fixed]
    return Grid(caption, columns, lines, data, len(rows), scale.at(1.0))


def _columns(rows: Sequence[Row], item: str) -> list[Column]:
    several = {name: len({value(row) for row in rows}) > 1 for name, value in TEXTS.items()}
    energy = any("energy_j" in row.metrics for row in rows)
    qualities = sorted({row.quality_name for row in rows if row.quality})
    return [
        Column("machine", "Machine", "", several["machine"]),
        Column("commit", "Commit", "", several["commit"]),
        Column("track", "Track", "", several["track"]),
        Column("case", "Case"),
        Column("rank", "Rank", "interval of places: shared where nobody can tell"),
        Column("contender", "Contender"),
        Column("time", "Time", f"median seconds {one(item)}"),
        Column("slowdown", "Slowdown", "paired ratio to the baseline with its 95 % interval; lower is better"),
        Column("quality", (" or ".join(qualities) or "quality").capitalize(), "mean over the seeds", bool(qualities)),
        Column("limit", "Of limit", "share of what this machine was measured to be able to do", not qualities),
        Column("memory", "Memory", "peak bytes a call adds"),
        Column("error", "Error", "relative to the float64 reference", False),
        Column("energy", "Energy", f"joules {one(item)}, where there is a counter", energy),
        Column("blocks", "Blocks", "paired blocks behind the slowdown", False),
        Column("status", "Status"),
        Column("verified", "Verified", SIGNED, any(row.verified for row in rows)),
        Column("repeat", "Repeat", "the command that measures the row again"),
    ]


def _columnar(rows: Sequence[Row], cases: Mapping[str, Mapping[str, Scalar]]) -> dict[str, Any]:
    texts: dict[str, Any] = {}
    for name, value in TEXTS.items():
        found = [value(row) for row in rows]
        distinct = list(dict.fromkeys(found))
        index = {text: i for i, text in enumerate(distinct)}
        texts[name] = {"of": distinct, "at": _same([index[text] for text in found])}
    slugs = texts["case"]["of"]
    axes = sorted({axis for slug in slugs for axis in cases.get(slug, {})})
    names = sorted({name for row in rows for name in row.metrics})
    return {
        "v": 1,
        "n": len(rows),
        "texts": texts,
        "axes": {axis: [_axis(cases.get(slug, {}).get(axis)) for slug in slugs] for axis in axes},
        "summaries": list({row.contender: row.note.summary for row in reversed(rows)}.items()),
        "rank": _same([list(row.rank) if row.rank else None for row in rows]),
        "limit_fraction": _same([row.limit_fraction for row in rows]),
        "repeat": _same([bool(row.reproduce) for row in rows]),
        "metrics": {name: _metric([row.metrics.get(name) for row in rows]) for name in names},
        "words": {name: [words(name), is_share(name)] for name in names},
    }


def _axis(value: Scalar) -> str | None:
    return None if value is None else str(value)


def _metric(found: Sequence[Metric | None]) -> dict[str, Any]:
    return {
        "unit": _same([m.unit if m else None for m in found]),
        "value": _same([m.value if m else None for m in found]),
        "lo": _same([m.ci[0] if m and m.ci else None for m in found]),
        "hi": _same([m.ci[1] if m and m.ci else None for m in found]),
        "n": _same([m.n if m else None for m in found]),
    }


def _same(values: list[Any]) -> Any:
    """A list, or ``{"all": value}`` where every row holds the same."""
    return {"all": values[0]} if values and all(value == values[0] for value in values) else values
