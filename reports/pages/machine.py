"""A page per machine: what was detected, and what it was measured to reach."""

from __future__ import annotations

from collections.abc import Iterator

from archbench.reports import machines
from archbench.reports.pages import Board, Output, digest
from archbench.reports.pages.html import page_name, render


def outputs(board: Board) -> Iterator[Output]:
    for name in board.machines:
        view = machines.machine_view(board.results, name)
        path = f"machine/{page_name(name)}.html"
        yield Output(
            path,
            digest(view),
            lambda path=path, view=view: render("machine.html.j2", path, machine=view),  # type: ignore[misc]
        )
