"""The command line: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from archbench.cells import Cell
from archbench.cli import console, measuring
from archbench.discovery import load_track
from archbench.reports.imports import import_file
from archbench.reports.load import Problem
from results_builder import small

LLAMA = {
    "build_commit": "1d0125bc", "model_type": "llama 1B Q4_0", "n_prompt": 512, "n_gen": 0, "avg_ns": 1e9,
    "test_time": "2026-01-02T03:04:05Z",
}  # fmt: skip


def archbench(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "archbench", *arguments],
        cwd=cwd,
        env=os.environ | variables,
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
        (("export", "--format", "parquet"), "--out"),
        (("validate",), "archbench run"),
        (("merge", "nowhere"), "nowhere"),
        (("serve",), "archbench board"),
        (("import", "llama-bench", "x.json"), "name one with --machine"),
        (("import", "llama-bench", "x.json", "--machine", "pi5"), "x.json: cannot be opened"),
        (("import", "asv", "theirs", "--machine", "pi5"), "leave --machine out"),
        (("board", "--out", "."), "is the folder you are in"),
        (("serve", "--port", "99999"), "65535"),
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
        (("run", "attention", "--case", "b1-h4-len128-d64-fp32"), "did you mean 'b1-h4-len128-d64-fp32-fwd'?"),
    ):
        done = archbench(*arguments, cwd=root)
        assert done.returncode == 2
        assert sentence in done.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        (("run", "attention/naive"), {"XDG_CACHE_HOME": os.devnull}, "Not a directory"),
        (("check", "attention"), {"ARCHBENCH_DEVICE": "tpu"}, "tpu"),
        (("machine",), {"HOME": "home"}, "move it away"),
        (("run", "attention/naive"), {"HOME": "home"}, "move it away"),
    ],
)
def test_a_host_that_is_not_ready_is_a_sentence(
    arguments: tuple[str, ...], variables: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    """A cache that is no folder, a device that is not there, a machine file somebody spoilt."""
    root = Path(__file__).resolve().parent.parent
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".asv-machine.json").write_text("{")
    if "HOME" in variables:
        variables = {"HOME": str(tmp_path / "home")}
    done = archbench(*arguments, cwd=root, ARCHBENCH_MACHINE="only-a-test", **variables)
    assert not (root / "reports" / "results" / "only-a-test").exists()
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


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


def test_results_go_from_one_folder_to_another_and_out(tmp_path: Path) -> None:
    small(tmp_path / "theirs")
    (tmp_path / "bench.json").write_text(json.dumps([LLAMA]))
    done = archbench("import", "asv", "theirs", "--into", "ours", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "2 files written, 0 unchanged\n")
    assert archbench("merge", "theirs", "--into", "ours", cwd=tmp_path).stdout == "0 files written, 2 unchanged\n"
    done = archbench("import", "llama-bench", "bench.json", "--machine", "pi5", "--into", "ours", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / done.stdout.strip()).is_file()
    done = archbench("export", "--format", "csv", "--results", "ours", "--out", "rows.csv", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    printed = archbench("export", "--format", "csv", "--results", "ours", cwd=tmp_path).stdout
    assert (tmp_path / "rows.csv").read_text() == printed
    assert printed.count("\n") == 1 + 16 + 1


def test_board_watch_renders_again_when_results_change(tmp_path: Path) -> None:
    results, site = tmp_path / "results", tmp_path / "site"
    command = [sys.executable, "-m", "archbench", "board", "--watch", "--results", str(results), "--out", str(site)]
    watching = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert watching.stderr is not None
        assert watching.stderr.readline().startswith("waiting: no results in")
        small(tmp_path / "made").rename(results)
        assert watching.stdout is not None
        assert watching.stdout.readline().endswith("16 rows\n")
        assert watching.stdout.readline().strip() == str(site / "index.html")
        import_file("llama-bench", _planted(tmp_path / "bench.json"), "pi5", results)
        assert watching.stdout.readline().endswith("17 rows\n")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 0
    finally:
        watching.kill()
        watching.communicate()


def test_folders_are_found_from_anywhere_in_a_checkout(tmp_path: Path) -> None:
    (tmp_path / "asv.conf.json").write_text("{}")
    small(tmp_path / "reports" / "results")
    inside = tmp_path / "docs" / "guide"
    inside.mkdir(parents=True)
    assert json.loads(archbench("export", cwd=inside).stdout)["rows"]
    done = archbench("board", cwd=inside)
    assert done.stdout.splitlines()[-1] == str(tmp_path / "reports" / "site" / "index.html")
    assert archbench("board", "--out", "..", cwd=inside).returncode == 2
    assert list(inside.iterdir()) == []


def test_foreign_text_neither_is_markup_nor_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "cannot open [/usr/lib/x.so] [red]\x1b[2J"
    cell = Cell(
        track="t", case="[/c]", contender="[bold]", baseline="b", status="crashed", reason=f"RuntimeError: {reason}"
    )
    measuring._print_cells([cell])
    printed = capsys.readouterr().out
    assert "[/c]" in printed
    assert "[bold]" in printed
    assert "[/usr/lib/x.so]" in printed
    assert "[red]" in printed
    assert "\x1b" not in printed
    console.report([Problem("a\nskipped b: forged\x1b[2J", "why")])
    (line, count) = capsys.readouterr().err.splitlines()
    assert line == r"skipped a\nskipped b: forged\u001b[2J: why"
    assert count.startswith("1 file(s)")


def _planted(path: Path) -> Path:
    path.write_text(json.dumps([LLAMA]))
    return path
