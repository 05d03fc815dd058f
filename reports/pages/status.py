"""What did not count: every file, record and cell without a number, with the reason."""

from __future__ import annotations

from collections.abc import Iterator

from archbench.reports.pages import Board, Output, digest
from archbench.reports.pages.html import render


def outputs(board: Board) -> Iterator[Output]:
    problems = board.results.problems
    failed = [row for row in board.results.rows if row.status != "ok"]
    key = digest(problems, [(row.key, row.status, row.reason) for row in failed])
    yield Output("status.html", key, lambda: render("status.html.j2", "status.html", failed=failed, problems=problems))
