"""A picture for links to the board: who is first, as a PNG of 1200 x 630; with the extra ``board`` only."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from archbench.reports import views
from archbench.reports.pages import Board, Output, digest
from archbench.reports.pages.html import environment

PATH = "card.png"
LINES = 6


def available(board: Board) -> bool:
    """Whether there is a picture: the package that draws it is installed and something was measured."""
    return bool(board.results.rows) and find_spec("vl_convert") is not None


def outputs(board: Board) -> Iterator[Output]:
    if not available(board):
        return
    lines = []
    for (track, machine), rows in board.by_track_and_machine.items():
        winner = views.winner(rows, board.standings(track, machine, views.main_commit(rows)))
        if winner.names:
            lines.append((f"{track} on {machine}"[:58], " or ".join(winner.names)[:44], winner.margin))
    values = {"lines": lines[:LINES], "more": len(lines) - LINES, "rows": board.results.count}
    yield Output(PATH, digest(values), lambda: _png(environment().get_template("card.svg.j2").render(**values)))


def _png(svg: str) -> bytes:
    import vl_convert

    found: bytes = vl_convert.svg_to_png(svg)
    return found
