"""A page per contender: what it is, and all its results over machines, cases and commits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from archbench.reports import views
from archbench.reports.export import csv_of
from archbench.reports.grid import grid
from archbench.reports.pages import Board, Output, digest
from archbench.reports.pages.html import contender_path, page_name, render
from archbench.reports.row import Row


def outputs(board: Board) -> Iterator[Output]:
    for track, rows in board.by_track.items():
        own: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            own[row.contender].append(row)
        standings = {
            machine: board.standings(track, machine, views.main_commit(found))
            for (name, machine), found in board.by_track_and_machine.items()
            if name == track
        }
        for name, found in sorted(own.items()):
            places = [(machine, place) for machine, table in standings.items() for place in table if place.name == name]
            path = contender_path(track, name)
            note = board.results.tracks.get(track)
            key = digest(found, places, note.cases if note else {}, note.item if note else "call", board.here)
            yield Output(path, key, lambda t=track, n=name, f=found, p=places: _page(board, t, n, f, p))  # type: ignore[misc]
            yield Output(path.replace(".html", ".csv"), key, lambda f=found: csv_of(f).encode())  # type: ignore[misc]


def _page(board: Board, track: str, name: str, rows: list[Row], places: list[tuple[str, views.Standing]]) -> bytes:
    note = board.results.tracks.get(track)
    newest = max(rows, key=lambda row: row.run)
    return render(
        "contender.html.j2",
        contender_path(track, name),
        scripts=("numbers.js", "saving.js", "columns.js", "grid.js"),
        track=track,
        name=name,
        note=newest.note,
        source=_link(newest.note.source),
        places=places,
        quality=newest.quality_name,
        measure=views.measure(newest.quality_name),
        grid=grid(
            f"{name} in {track}",
            rows,
            note.cases if note else {},
            here=board.here,
            fixed=("track", "contender"),
            item=note.item if note else "call",
        ),
        csv=f"{page_name(name)}.csv",
    )


def _link(source: str) -> str:
    """The address behind a source line, where it is a web address or an arXiv or DOI number; else nothing."""
    for word in source.replace(",", " ").replace(";", " ").split():
        if word.startswith(("https://", "http://")):
            return word
        for prefix, address in (("arXiv:", "https://arxiv.org/abs/"), ("doi:", "https://doi.org/")):
            if word.startswith(prefix):
                return address + word.removeprefix(prefix)
    return ""
