"""Tracks that rank by quality: runs on the same data, compared with the baseline's seed by seed.

A training track names its quality, a test error. Contender and baseline are trained with the same seeds, so what both
owe to a seed cancels in the ratio of their errors, as what both owe to a busy moment cancels in the ratio of their
times. The ratio's geometric mean with Student's interval is the metric ``<quality>_ratio``, and ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec

from archbench.cells import Cell, Data, Metric, Scalar, TrackNote
from archbench.reports.row import Row
from archbench.stats import mean_interval

FARTHEST = math.log(1e9)  # of a ratio and its ends: beyond it a few runs say nothing
SHOWN = 8  # characters of a fingerprint: two data sets of one name never share them by chance


def case_on(case: str, data: Data | None) -> str:
    """A case's name on the board: with the fingerprint of its data, so that other data is another case."""
    return f"{case}@{data.fingerprint[:SHOWN]}" if data else case


def plain_case(case: str) -> str:
    """The case as its track and ``--case`` know it."""
    return case.partition("@")[0]


def whole(cell: Cell) -> dict[str, Metric]:
    """A cell's metrics without those that only some of its runs have: the mean of who arrived flatters who did not."""
    partial = {name for name, values in cell.samples.items() if None in values}
    return {name: metric for name, metric in cell.metrics.items() if name not in partial}


def facts_of(data: Data | None) -> dict[str, Scalar]:
    """The data among the facts of a row."""
    return {"data.name": data.name, "data.origin": data.origin, "data.fingerprint": data.fingerprint} if data else {}


def data_of(cells: Iterable[Cell]) -> dict[tuple[str, str], Data]:
    """The data of the cases of one run, for those of its cells that ended before they looked at it."""
    found: dict[tuple[str, str], set[Data]] = {}
    for cell in cells:
        if cell.data is not None:
            found.setdefault((cell.track, cell.case), set()).add(cell.data)
    return {case: data.pop() for case, data in found.items() if len(data) == 1}


def with_data(notes: Mapping[str, TrackNote], rows: Iterable[Row]) -> dict[str, TrackNote]:
    """The tracks' notes with the axes of the cases on data: those of the case and the data's name."""
    more: dict[str, dict[str, dict[str, Scalar]]] = {}
    for row in rows:
        slug, _, fingerprint = row.case.rpartition("@")
        note = notes.get(row.track)
        if fingerprint and note is not None and slug in note.cases:
            data = f"{row.host.get('data.name', '')}@{fingerprint}"
            more.setdefault(row.track, {})[row.case] = {**note.cases[slug], "data": data}
    return {
        name: msgspec.structs.replace(note, cases=note.cases | more[name]) if name in more else note
        for name, note in notes.items()
    }


def compared(group: Sequence[Row]) -> list[Row]:
    """The rows of one case with their quality as a ratio to the baseline's, where seeds of both are known."""
    base = next((row for row in group if row.contender == row.baseline), None)
    return [_compared(row, base) if row.quality and base is not None else row for row in group]


def _compared(row: Row, base: Row) -> Row:
    pairs = list(zip(row.samples.get(row.quality, ()), base.samples.get(row.quality, ()), strict=False))
    if not pairs or not all(own is not None and other is not None and own > 0 and other > 0 for own, other in pairs):
        return row  # a run without an error: no ratio, and leaving its seed out would favour the others
    found = mean_interval([math.log(own) - math.log(other) for own, other in pairs if own and other])
    if max(abs(found.lo), abs(found.hi)) > FARTHEST:
        return row
    ratio = found.exp()
    ends = (ratio.lo, ratio.hi) if ratio.n > 1 else None
    return replace(row, metrics={**row.metrics, row.ranking: Metric(ratio.value, "ratio", ends, ratio.n)})
