"""The command line: what it prints, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from archbench.discovery import load_track


def archbench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "archbench", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("check", "atention"), "did you mean 'attention'?"),
        (("check", "attention/naiv"), "did you mean 'naive'?"),
        (("run", "attention"), "no asv.conf.json"),
        (("export",), "archbench run"),
        (("board",), "archbench run"),
        (("export", "--results", "nowhere"), "nowhere"),
    ],
)
def test_a_mistake_ends_with_2_and_a_sentence(arguments: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    done = archbench(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_unknown_targets_and_cases_are_named_before_anything_is_measured() -> None:
    root = Path(__file__).resolve().parent.parent
    for arguments, sentence in (
        (("run", "attention/naiv"), "did you mean 'naive'?"),
        (("run", "attention", "--case", "b1-h4-len128-d64-fp32"), "did you mean 'b1-h8-len128-d64-fp32-fwd'?"),
    ):
        done = archbench(*arguments, cwd=root)
        assert done.returncode == 2
        assert sentence in done.stderr


def test_list_prints_the_contract(tmp_path: Path) -> None:
    done = archbench("list", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (attention,) = (t for t in json.loads(done.stdout)["tracks"] if t["track"] == "attention")
    assert set(attention) == {"track", "question", "baseline", "cases", "contenders"}
    assert attention["baseline"] == "torch_sdpa"
    assert attention["cases"] == [case.slug for case in load_track("attention").bench_cases]
    by_name = {c["contender"]: c for c in attention["contenders"]}
    assert all(set(c) == {"contender", "status", "reason", "source"} for c in by_name.values())
    assert len([c for c in by_name.values() if c["status"] == "ok"]) >= 7
    assert "naive" in archbench("list", cwd=tmp_path).stdout


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert archbench("--version", cwd=tmp_path).stdout.startswith("archbench ")
