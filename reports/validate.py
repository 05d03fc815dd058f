"""Validation: may these results be delivered, published, rendered?

There is one truth. ``validate`` reads with the reader the board reads with, so what it quarantines is what the board
leaves out, with the same words. Two checks need more than the files and are made here only: the clock (a run of
tomorrow) and a git history (a commit nobody made). A board must not change with the day it is rendered on, so it
shows such rows; whoever publishes validates first.

Signatures are not checked here: ``archbench agent collect`` does, and leaves a proof. That a run file is still what its
proof says, is.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from archbench.cells import CELLS_DIR, Run, decode
from archbench.reports.imports.measured import is_imported
from archbench.reports.load import Problem, finite, read_bytes, read_object
from archbench.reports.meaning import CLOCK_SKEW, date
from archbench.reports.rows import load


@dataclass(frozen=True)
class Verdict:
    """What a results folder is worth. ``files`` gave something; ``quarantined`` did not, or not all they hold."""

    files: int
    rows: int
    quarantined: list[Problem]

    @property
    def usable(self) -> bool:
        return self.rows > 0

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, schema 1."""
        quarantined = [{"path": problem.path, "reason": problem.reason} for problem in self.quarantined]
        return {"schema": 1, "files": self.files, "rows": self.rows, "quarantined": quarantined}

    def exit_code(self, *, strict: bool) -> int:
        """0 clean, 1 something quarantined where that counts, 2 nothing usable."""
        if not self.usable:
            return 2
        return 1 if strict and self.quarantined else 0


@dataclass(frozen=True)
class History:
    """The commits of a repository with their dates."""

    commits: dict[str, datetime]

    @classmethod
    def of(cls, repository: Path) -> History:
        """Asks git once. Raises ValueError where there is no repository or no git."""
        command = ["git", "-C", str(repository), "log", "--all", "--format=%H %ct"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        except FileNotFoundError as error:
            raise ValueError("git is not installed") from error
        if done.returncode:
            raise ValueError(f"no git history in {repository}: {done.stderr.strip()}")
        pairs = (line.split() for line in done.stdout.splitlines())
        return cls({commit: datetime.fromtimestamp(int(seconds), UTC) for commit, seconds in pairs})

    def made(self, commit: str) -> datetime | None:
        """When a commit was made, full hash or the start of one; None for a stranger."""
        exact = self.commits.get(commit)
        if exact is not None:
            return exact
        return next((when for known, when in self.commits.items() if known.startswith(commit)), None)


def validate(folder: Path, *, now: datetime | None = None, repository: Path | None = None) -> Verdict:
    """Judge a results folder. Without ``now`` and ``repository`` it quarantines exactly what the board leaves out.

    Raises NoResults for a folder with nothing in it, ValueError for a repository that is none.
    """
    results = load(folder)
    history = History.of(repository) if repository else None
    outside = [
        Problem(source, reason)
        for source in results.sources
        if now is not None or history is not None
        for reason in _outside(folder / source, now, history)
    ]
    return Verdict(len(results.sources), results.count, sorted({*results.problems, *outside}))


def _outside(path: Path, now: datetime | None, history: History | None) -> Iterator[str]:
    """What the clock and the history have against a file that is fine in itself."""
    commit, started, what, ours = _origin(path)
    if now is not None and started > now + CLOCK_SKEW:
        yield f"{what} {started:%Y-%m-%d}, which is in the future"
    if history is not None and ours:
        made = history.made(commit)
        if made is None:
            yield f"commit {commit[:12]} is not in the repository's history"
        elif started < made - CLOCK_SKEW:
            yield f"{what} {started:%Y-%m-%d}, before its commit was made ({made:%Y-%m-%d})"


def _origin(path: Path) -> tuple[str, datetime, str, bool]:
    """Commit, date, what happened at that date, and whether the commit is one of the project's own."""
    if path.parent.name == CELLS_DIR:
        header = decode(read_bytes(path).partition(b"\n")[0])
        assert isinstance(header, Run)
        return header.commit, date(header.started, "started"), "started on", not is_imported(header)
    found = read_object(path)
    when = datetime.fromtimestamp((finite(found.get("date")) or 0.0) / 1000, UTC)
    return str(found["commit_hash"]), when, "of a commit of", True
