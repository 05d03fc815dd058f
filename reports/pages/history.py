"""A page per track: every series over the commits of a machine, with its steps.

A series is the slowdown of a contender at a case. Where the harness, the track's version, torch, triton or the driver
changed, a new epoch begins: numbers on both sides of it are not one series, so no step is looked for across it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from archbench.formatting import ratio, significant
from archbench.reports import views
from archbench.reports.charts.spark import Spark, spark
from archbench.reports.pages import Board, Output, digest
from archbench.reports.pages.html import history_path, render
from archbench.reports.row import Row
from archbench.reports.steps import changes, within_epochs

MAX_SERIES = 300  # of a machine; those that moved most come first
EPOCH = ("version.archbench", "version.torch", "version.triton", "version.driver", "version.onnxruntime")


@dataclass(frozen=True)
class Series:
    """One contender at one case over the commits."""

    case: str
    contender: str
    latest: str
    against: str  # the value before, in multiples
    steps: list[str]
    points: int
    epochs: int
    picture: Spark
    moved: float  # the largest step or, without one, the last change: what the table is sorted by


@dataclass(frozen=True)
class Machine:
    """The series of a machine, and what its commits were."""

    name: str
    commits: list[tuple[str, str, str]]  # commit, date, versions; oldest first
    series: list[Series]
    left_out: int


def outputs(board: Board) -> Iterator[Output]:
    for track, rows in board.by_track.items():
        kept = [row for row in rows if row.status == "ok" and "slowdown" in row.metrics]
        key = digest(kept)
        yield Output(history_path(track), key, lambda t=track, r=kept: _page(t, r))  # type: ignore[misc]


def _page(track: str, rows: Sequence[Row]) -> bytes:
    by_machine: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_machine[row.machine].append(row)
    machines = [_machine(name, own) for name, own in sorted(by_machine.items())]
    return render("history.html.j2", history_path(track), track=track, machines=machines)


def _machine(name: str, rows: Sequence[Row]) -> Machine:
    commits = views.newest_commits(rows)[::-1]
    place = {commit: i for i, commit in enumerate(commits)}
    newest = {row.commit: row for row in sorted(rows, key=lambda row: row.run)}
    by_series: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_series[row.case, row.contender].append(row)
    found = [
        _series(case, contender, sorted(own, key=lambda row: place[row.commit]))
        for (case, contender), own in sorted(by_series.items())
        if len(own) > 1
    ]
    found.sort(key=lambda series: (-series.moved, series.case, series.contender))
    told = [(commit, newest[commit].date[:10], views.versions_of(newest[commit])) for commit in commits]
    return Machine(name, told, found[:MAX_SERIES], max(0, len(found) - MAX_SERIES))


def _series(case: str, contender: str, rows: Sequence[Row]) -> Series:
    values = [row.metrics["slowdown"].value for row in rows]
    epochs = [_epoch(row) for row in rows]
    starts = [i for i in range(1, len(rows)) if epochs[i] != epochs[i - 1]]
    moved = [change for change in changes(within_epochs(values, epochs)) if change.position not in starts]
    told = [f"{significant(change.ratio)}× at {rows[change.position].commit[:8]}" for change in moved]
    last = values[-1] / values[-2]
    sizes = [max(change.ratio, 1 / change.ratio) for change in moved] or [max(last, 1 / last)]
    return Series(
        case=case,
        contender=contender,
        latest=ratio(values[-1], rows[-1].metrics["slowdown"].ci),
        against=f"{significant(last)}×",
        steps=told,
        points=len(rows),
        epochs=1 + len(starts),
        picture=spark(values, epochs=starts, steps=[change.position for change in moved]),
        moved=max(sizes) if moved else max(sizes) - 1,
    )


def _epoch(row: Row) -> tuple[object, ...]:
    return (row.version, *(row.host.get(name) for name in EPOCH))
