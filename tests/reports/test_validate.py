"""Validation: one judgement, the same as the board's, and an exit code a script can trust."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from archbench.harness.physics import IMPOSSIBLE_ABOVE
from archbench.reports.load import NoResults
from archbench.reports.meaning import ABOVE_THE_ROOFLINE
from archbench.reports.rows import load
from archbench.reports.site import render
from archbench.reports.validate import validate
from results_builder import MACHINE, asv_file, cell, note, run, small, write

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def archbench(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "archbench", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def damaged(folder: Path) -> Path:
    """A good run, a bad line, a bad file, and samples sold twice."""
    results = small(folder)
    sold = [cell("base"), cell("fast", 0.5)]
    write(results, [run(identity="20260102T000000Z-cccccc"), note(), *sold, cell("bad", limit_fraction=3.0)])
    write(results, [run(identity="20260103T000000Z-dddddd", started="2026-01-03T00:00:00+00:00"), note(), *sold])
    (results / MACHINE / "bad.json").write_text("{")
    return results


def test_what_is_quarantined_is_what_the_board_leaves_out(tmp_path: Path) -> None:
    results = damaged(tmp_path / "results")
    verdict = validate(results)
    rendered = render(results, tmp_path / "site")
    assert verdict.quarantined == load(results).problems == rendered.problems
    assert len({problem.path.partition(":")[0] for problem in verdict.quarantined}) == 3
    assert verdict.rows == rendered.rows
    page = (tmp_path / "site" / "status.html").read_text()
    assert all(problem.path in page for problem in verdict.quarantined)


def test_a_run_of_tomorrow_is_quarantined_by_those_who_have_a_clock(tmp_path: Path) -> None:
    late = run(identity="20990102T030405Z-bbbbbb", started="2099-01-02T03:04:05+00:00")
    path = write(small(tmp_path), [late, note(), cell("base")])
    (tmp_path / MACHINE / "late.json").write_text(asv_file(date=4_000_000_000_000))
    assert validate(tmp_path).quarantined == []
    found = {problem.path: problem.reason for problem in validate(tmp_path, now=NOW).quarantined}
    assert set(found) == {f"{MACHINE}/cells/{path.name}", f"{MACHINE}/late.json"}
    assert all("in the future" in reason for reason in found.values())


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, str]:
    """A git repository with one commit of 2026-01-01."""
    folder = tmp_path / "repository"
    folder.mkdir()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), "-c", "user.name=Test", "-c", "user.email=test@example.org", *arguments]
        environment = {"GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z", "PATH": "/usr/bin:/bin:/usr/local/bin"}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "First")
    return folder, git("rev-parse", "HEAD")


def test_commits_must_be_in_the_history_and_older_than_their_runs(tmp_path: Path, repository: tuple[Path, str]) -> None:
    folder, commit = repository
    results = tmp_path / "results"
    write(results, [run(commit=commit), note(), cell("base")])
    assert validate(results, repository=folder).quarantined == []
    stranger = write(results, [run(identity="20260202T030405Z-bbbbbb"), note(), cell("base")])
    early = run(identity="20250202T030405Z-cccccc", commit=commit, commit_date="", started="2025-02-02T03:04:05+00:00")
    older = write(results, [early, note(), cell("base")])
    found = {problem.path: problem.reason for problem in validate(results, repository=folder).quarantined}
    assert "not in the repository's history" in found[f"{MACHINE}/cells/{stranger.name}"]
    assert "before its commit was made" in found[f"{MACHINE}/cells/{older.name}"]
    assert len(found) == 2
    with pytest.raises(ValueError, match="no git history"):
        validate(results, repository=tmp_path)


def test_the_roofline_is_the_harness_own() -> None:
    assert ABOVE_THE_ROOFLINE == IMPOSSIBLE_ABOVE


def test_nothing_is_never_fine(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(NoResults):
            validate(folder)


@pytest.mark.parametrize(
    ("make", "strict", "code"),
    [
        (small, True, 0),
        (damaged, False, 0),
        (damaged, True, 1),
        (lambda folder: folder.mkdir(), False, 2),
        (lambda folder: (folder / "m").mkdir(parents=True), True, 2),
        (lambda folder: write(folder, [run()]).write_text("x"), False, 2),
        (lambda folder: write(folder, [run(), note()]), False, 2),
        (lambda folder: None, False, 2),
    ],
    ids=["clean", "quarantined", "strict", "empty", "empty machine", "all bad", "no cells", "no folder"],
)
def test_the_exit_code_is_the_verdict(make: Any, strict: bool, code: int, tmp_path: Path) -> None:
    make(tmp_path / "results")
    done = archbench("validate", tmp_path / "results", *["--strict"] * strict, cwd=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if code == 2:
        assert str(tmp_path / "results") in done.stderr


def test_a_line_per_quarantined_file_and_a_summary_or_json(tmp_path: Path) -> None:
    results = damaged(tmp_path / "results")
    expected = validate(results)
    *lines, summary = archbench("validate", results, cwd=tmp_path).stdout.splitlines()
    assert lines == [f"{problem.path}: {problem.reason}" for problem in expected.quarantined]
    assert summary == f"{expected.files} files, {expected.rows} rows, {len(lines)} quarantined"
    told = json.loads(archbench("validate", results, "--format", "json", cwd=tmp_path).stdout)
    assert told == expected.as_dict()
