"""A page per track: who is how fast, case by case, on every machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from archbench.reports import views
from archbench.reports.pages import Board, Output, digest
from archbench.reports.pages.html import page_name, render
from archbench.reports.rows import Row


def outputs(board: Board) -> Iterator[Output]:
    for track in board.tracks:
        path = f"track/{page_name(track)}.html"
        rows = {machine: found for (name, machine), found in board.by_track_and_machine.items() if name == track}
        key = digest(rows, board.results.tracks.get(track), board.results.problems)
        yield Output(path, key, lambda path=path, track=track, rows=rows: _page(board, path, track, rows))  # type: ignore[misc]


def _page(board: Board, path: str, track: str, by_machine: dict[str, Sequence[Row]]) -> bytes:
    note = board.results.tracks.get(track)
    boards = []
    for _, rows in sorted(by_machine.items()):
        by_commit = defaultdict(list)
        for row in rows:
            by_commit[row.commit].append(row)
        boards.append(
            [views.board(by_commit[commit], note.cases if note else {}) for commit in views.newest_commits(rows)]
        )
    return render(
        "track.html.j2",
        path,
        track=track,
        note=note,
        boards=boards,
        problems=board.results.problems,
        html_rows=views.HTML_ROWS,
    )
