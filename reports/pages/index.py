"""The first page: who wins each track on each machine, by how much, how surely."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from archbench.reports import views
from archbench.reports.machines import machine_kind
from archbench.reports.pages import Board, Output, card, digest, explore
from archbench.reports.pages.html import render

KINDS = {"gpu": "GPU hosts", "cpu": "CPU hosts", "board": "single-board computers"}


@dataclass(frozen=True)
class Section:
    """A machine on the first page."""

    name: str
    kind: str
    winners: list[views.Winner]


def outputs(board: Board) -> Iterator[Output]:
    results = board.results
    order = sorted(board.machines, key=lambda name: (name != board.here, name))
    machines = [
        Section(
            name,
            machine_kind(results, name),
            [
                views.winner(rows, board.standings(track, name, views.main_commit(rows)))
                for (track, machine), rows in board.by_track_and_machine.items()
                if machine == name
            ],
        )
        for name in order
    ]
    present = {machine.kind for machine in machines}
    values: dict[str, Any] = {
        "machines": [machine for machine in machines if machine.winners],
        "others": [machine.name for machine in machines if not machine.winners],
        "kinds": [(kind, label) for kind, label in KINDS.items() if kind in present],
        "notes": results.tracks,
        "rows": results.count,
        "tracks": board.tracks,
        "problems": len(results.problems),
        "benchmarks": len(results.archive.series),
        "paired": any(w.names for machine in machines for w in machine.winners),
        "explore": explore.available(board),
        "picture": f"{board.address}{card.PATH}" if board.address and card.available(board) else "",
    }
    yield Output("index.html", digest(values), lambda: render("index.html.j2", "index.html", **values))
