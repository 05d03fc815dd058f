"""A page per track that sets any two of machine, commit and contender against each other, case by case.

Two sides are compared by their slowdowns, which were each paired with the baseline, by the rule of the ranks: apart
when the intervals do not cross and the difference exceeds the A/A band. Across machines nothing is judged: each side is
relative to its own machine's baseline.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from archbench.formatting import ratio, seconds
from archbench.reports import views
from archbench.reports.pages import Board, Output, digest
from archbench.reports.pages.html import compare_path, render
from archbench.reports.rank import band, log_interval
from archbench.reports.row import Row, is_rankable
from archbench.stats import apart

MAX_COMMITS = 12  # per machine; older ones are in the export
Side = tuple[str, str, str]  # machine, commit, contender


@dataclass(frozen=True)
class Verdict:
    """One case of the comparison shown without a script."""

    case: str
    a: str
    b: str
    quotient: str
    judged: str  # "faster", "slower", "cannot be told apart", ""


def outputs(board: Board) -> Iterator[Output]:
    for track, rows in board.by_track.items():
        kept = [row for row in _recent(rows) if row.status == "ok" and {"slowdown", "latency_s"} <= row.metrics.keys()]
        yield Output(
            compare_path(track),
            digest(kept, board.here),
            lambda t=track, r=kept: _page(board, t, r),  # type: ignore[misc]
        )


def _recent(rows: Sequence[Row]) -> list[Row]:
    by_machine: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_machine[row.machine].append(row)
    found = []
    for own in by_machine.values():
        commits = set(views.newest_commits(own)[:MAX_COMMITS])
        found += [row for row in own if row.commit in commits]
    return found


def _page(board: Board, track: str, rows: list[Row]) -> bytes:
    note = board.results.tracks.get(track)
    order = list(note.cases) if note else []
    cases = [c for c in order if any(row.case == c for row in rows)] + sorted({row.case for row in rows} - set(order))
    bands = _bands(rows)
    a, b = _default(board, track)
    return render(
        "compare.html.j2",
        compare_path(track),
        scripts=("numbers.js", "compare.js"),
        track=track,
        quality=next((row.quality_name for row in rows if row.quality), ""),
        a=a,
        b=b,
        verdicts=_verdicts(rows, cases, bands, a, b),
        data=_data(rows, cases, bands, a, b),
    )


def _bands(rows: Sequence[Row]) -> dict[tuple[str, str, str], float]:
    """The A/A band per machine, commit and case, in log units."""
    controls = defaultdict(list)
    for row in rows:
        if row.control is not None:
            controls[row.machine, row.commit, row.case].append(row.control)
    return {key: band(found) for key, found in controls.items()}


def _default(board: Board, track: str) -> tuple[Side | None, Side | None]:
    """The leader against the best that is surely slower, on this machine or the first one."""
    own = {machine: rows for (name, machine), rows in board.by_track_and_machine.items() if name == track}
    for machine in sorted(own, key=lambda name: (name != board.here, name)):
        commit = views.main_commit(own[machine])
        ranked = [s for s in board.standings(track, machine, commit) if s.complete]
        if len(ranked) > 1:
            second = next((s for s in ranked[1:] if not s.first), ranked[1])
            return (machine, commit, ranked[0].name), (machine, commit, second.name)
    return None, None


def _verdicts(
    rows: Sequence[Row],
    cases: Sequence[str],
    bands: dict[tuple[str, str, str], float],
    a: Side | None,
    b: Side | None,
) -> list[Verdict]:
    if a is None or b is None:
        return []
    cells = {(row.machine, row.commit, row.contender, row.case): row for row in rows}
    found = []
    for case in cases:
        x, y = cells.get((*a, case)), cells.get((*b, case))
        if x is None or y is None:
            continue
        own, other = log_interval(x.metrics["slowdown"]), log_interval(y.metrics["slowdown"])
        width = max(bands.get((*side[:2], case), 0.0) for side in (a, b))
        judged = "cannot be told apart"
        if apart(own, other, width):
            judged = "faster" if own.value < other.value else "slower"
        if not (is_rankable(x) and is_rankable(y)):
            judged = "not judged"
        found.append(Verdict(case, _side_text(x), _side_text(y), ratio(math.exp(own.value - other.value)), judged))
    return found


def _side_text(row: Row) -> str:
    return (
        f"{seconds(row.metrics['latency_s'].value)}, {ratio(row.metrics['slowdown'].value, row.metrics['slowdown'].ci)}"
    )


def _data(
    rows: Sequence[Row],
    cases: Sequence[str],
    bands: dict[tuple[str, str, str], float],
    a: Side | None,
    b: Side | None,
) -> dict[str, Any]:
    sides = sorted({(row.machine, row.commit, row.contender) for row in rows})
    index, place = {side: i for i, side in enumerate(sides)}, {case: i for i, case in enumerate(cases)}
    dates = {row.commit: row.date[:10] for row in rows}
    cells = []
    for row in rows:
        slowdown = row.metrics["slowdown"]
        low, high = slowdown.ci or (None, None)
        where = index[row.machine, row.commit, row.contender]
        cells.append(
            [where, place[row.case], slowdown.value, low, high, row.metrics["latency_s"].value, int(is_rankable(row))]
        )
    return {
        "cases": list(cases),
        "dates": dates,
        "sides": sides,
        "cells": cells,
        "bands": [[machine, commit, place[case], width] for (machine, commit, case), width in sorted(bands.items())],
        "a": a,
        "b": b,
    }
