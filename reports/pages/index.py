"""The first page: who wins each track on each machine, by how much, how surely."""

from __future__ import annotations

from collections.abc import Iterator

from archbench.reports import views
from archbench.reports.pages import Board, Output, digest
from archbench.reports.pages.html import render


def outputs(board: Board) -> Iterator[Output]:
    results = board.results
    winners = {
        (machine, track): views.winner(views.newest(rows), machine, track)
        for (track, machine), rows in board.by_track_and_machine.items()
    }
    values = {
        "winners": winners,
        "notes": results.tracks,
        "rows": results.count,
        "tracks": board.tracks,
        "machines": board.machines,
        "problems": results.problems,
    }
    key = digest(sorted(winners.items()), results.tracks, results.count, results.problems)
    yield Output("index.html", key, lambda: render("index.html.j2", "index.html", **values))
