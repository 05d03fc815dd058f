"""What did not count: every file, record and cell without a number, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from archbench.reports.archive import Archive
from archbench.reports.asv_tree import FAILED, ODD, SKIPPED
from archbench.reports.pages import Board, Output, digest
from archbench.reports.pages.html import render


@dataclass(frozen=True)
class Missing:
    """A benchmark of another project with points that hold no number: how many, by what happened."""

    benchmark: str
    failed: int
    skipped: int
    odd: int  # text, infinities: recorded, and no finite number


def outputs(board: Board) -> Iterator[Output]:
    problems, others = board.results.problems, missing(board.results.archive)
    failed = [row for row in board.results.rows if row.status != "ok"]
    key = digest(problems, [(row.key, row.status, row.reason) for row in failed], others)
    yield Output(
        "status.html",
        key,
        lambda: render("status.html.j2", "status.html", failed=failed, problems=problems, others=others),
    )


def missing(archive: Archive) -> list[Missing]:
    """Benchmarks of an archive that lack numbers, those that lack most first."""
    found = []
    for name, members in archive.by_benchmark():
        codes = archive.code[archive.bounds[members.start] : archive.bounds[members.stop]]
        counts = np.bincount(codes, minlength=ODD + 1)
        if counts[FAILED] or counts[SKIPPED] or counts[ODD]:
            found.append(Missing(name, int(counts[FAILED]), int(counts[SKIPPED]), int(counts[ODD])))
    return sorted(found, key=lambda entry: (-entry.failed - entry.odd, -entry.skipped, entry.benchmark))
