"""A page per track: who is how fast, case by case, on every machine; and the same rows as CSV."""

from __future__ import annotations

from collections.abc import Iterator

from archbench.cells import TrackNote
from archbench.reports import views
from archbench.reports.charts import looks
from archbench.reports.export import csv_of
from archbench.reports.grid import grid
from archbench.reports.markup import markup
from archbench.reports.pages import Board, Output, digest
from archbench.reports.pages.html import page_name, render, track_path
from archbench.reports.row import Row


def outputs(board: Board) -> Iterator[Output]:
    for track, rows in board.by_track.items():
        note = board.results.tracks.get(track)
        path = track_path(track)
        key = digest(rows, note, board.here)
        yield Output(path, key, lambda t=track, r=rows, n=note: _page(board, t, r, n))  # type: ignore[misc]
        yield Output(path.replace(".html", ".csv"), key, lambda r=rows: csv_of(_shown(r)).encode())  # type: ignore[misc]


def _machines(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.machine, []).append(row)
    return found


def _shown(rows: list[Row]) -> list[Row]:
    return [row for own in _machines(rows).values() for row in views.current(own)]


def _page(board: Board, track: str, rows: list[Row], note: TrackNote | None) -> bytes:
    cases = note.cases if note else {}
    looked = looks(_shown(rows))
    boards = [
        views.track_board(own, board.standings(track, machine, views.main_commit(own)), note, looked)
        for machine, own in _machines(rows).items()
    ]
    boards.sort(key=lambda b: (b.machine != board.here, b.machine))
    shown = [row for b in boards for row in b.rows]
    differing = sorted({(row.contender, row.note.differs) for row in shown if row.note.differs})
    return render(
        "track.html.j2",
        track_path(track),
        scripts=("numbers.js", "saving.js", "columns.js", "grid.js"),
        track=track,
        note=note,
        boards=boards,
        grid=grid(
            f"{track}: every case and contender",
            shown,
            cases,
            here=board.here,
            fixed=("track",),
            item=note.item if note else "call",
        ),
        csv=f"{page_name(track)}.csv",
        differing=differing,
        notes=markup(note.notes) if note and note.notes else "",
        derivation=markup(note.derivation) if note and note.derivation else "",
    )
