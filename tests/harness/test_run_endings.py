"""How a run ends: whole, interrupted, or refused before anything is measured. asv runs in a copy of the tree."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from working_copy import Copy

CASE = "b1-h4-len128-d64-fp32-fwd"
SLOW = '''"""A contender that takes its time."""

import time

from archbench.track import Contender

CONTENDER = Contender(build=lambda case: time.sleep(300))
'''


def rows(tree: Copy) -> dict[tuple[str, str], dict[str, object]]:
    found = json.loads(tree.archbench("export").stdout)["rows"]
    return {(row["contender"], row["case"]): row for row in found}


def leftovers(scratch: Path) -> list[str]:
    """Files in a run's temporary folder, and processes that were started with it."""
    found = [path.name for path in scratch.iterdir() if path.name.startswith(("archbench-run-", "asv-"))]
    for process in psutil.process_iter(["cmdline"]):
        found += [word for word in process.info["cmdline"] or () if word.startswith(str(scratch))]
    return found


@pytest.fixture(scope="module")
def measured(tree: Copy) -> Copy:
    """A copy without a branch main whose results hold one good row."""
    tree.git("checkout", "-q", "--detach")
    tree.git("branch", "-D", "main")
    tree.archbench("run", "attention/naive", "--case", CASE)
    return tree


def test_a_contender_more_adds_its_own_row_and_no_other(measured: Copy) -> None:
    kernels = measured.top / "kernels" / "attention"
    shutil.copyfile(kernels / "naive.py", kernels / "my_kernel.py")
    measured.archbench("run", "attention/my_kernel", "--case", CASE)
    found = rows(measured)
    assert set(found) == {("naive", CASE), ("my_kernel", CASE)}
    assert [found[key]["status"] for key in sorted(found)] == ["ok", "ok"]
    hosts = {name: row["host"] for (name, _), row in found.items()}
    assert hosts["naive"]["dirty"] is False  # type: ignore[index]
    assert hosts["my_kernel"]["dirty"] is True  # type: ignore[index]


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_keeps_what_is_finished_and_leaves_nothing_behind(
    ending: signal.Signals, measured: Copy
) -> None:
    (measured.top / "kernels" / "attention" / "slow_build.py").write_text(SLOW)
    before = rows(measured)
    with tempfile.TemporaryDirectory() as short:  # pytest's own are too long for a socket's path
        scratch = Path(short)
        command = [sys.executable, "-m", "archbench", "run", "attention/naive", "attention/slow_build", "--case", CASE]
        running = subprocess.Popen(
            command,
            cwd=measured.top,
            env=measured.environment | {"TMPDIR": short},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            file = _run_file(scratch, running)
            while file.read_text().count('"record":"started"') < 2:  # the second cell has begun
                assert running.poll() is None
                time.sleep(0.1)
            assert leftovers(scratch)
            running.send_signal(ending)
            _, said = running.communicate(timeout=60)
        finally:
            running.kill()
        assert running.returncode == 130
        assert "interrupted; 1 finished cells: " in said
        assert leftovers(scratch) == []
    after = rows(measured)
    assert set(after) == set(before)
    assert after["naive", CASE]["status"] == "ok"
    assert after["naive", CASE]["metrics"] != before["naive", CASE]["metrics"]


def _run_file(scratch: Path, running: subprocess.Popen[str]) -> Path:
    while not (found := list(scratch.glob("archbench-run-*/cells.jsonl"))):
        assert running.poll() is None, running.communicate()
        time.sleep(0.1)
    return found[0]


def test_a_planned_contender_that_asv_does_not_find_is_missed(measured: Copy, tmp_path: Path) -> None:
    """It is where only the process that plans looks."""
    (tmp_path / "elsewhere.py").write_text((measured.top / "kernels" / "attention" / "naive.py").read_text())
    (tmp_path / "elsewhere-1.dist-info").mkdir()
    points = "[archbench.contenders]\nattention/elsewhere = elsewhere\n"
    (tmp_path / "elsewhere-1.dist-info" / "entry_points.txt").write_text(points)
    (tmp_path / "elsewhere-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); from archbench.cli import app; app()"
    targets = ["attention/naive", "attention/elsewhere", "--case", CASE, "--into", str(tmp_path / "results")]
    done = measured.run("-c", code, "run", *targets, check=False)
    missed = "planned and not measured: attention/elsewhere (1 case): asv's processes did not find it"
    assert (done.returncode, missed in done.stderr) == (1, True), done.stderr
    assert "naive" in done.stdout  # the others are shown and kept
    assert list((tmp_path / "results").glob("*/cells/*.jsonl"))


def test_a_results_folder_that_cannot_be_is_refused_before_measuring(measured: Copy) -> None:
    results = measured.top / "reports" / "results"
    (machine,) = (path for path in results.iterdir() if path.is_dir())
    kept = machine.rename(results.parent / "kept")
    try:
        machine.write_text("")
        done = measured.archbench("run", "attention/naive", "--case", CASE, check=False)
    finally:
        machine.unlink()
        kept.rename(machine)
    assert (done.returncode, done.stdout) == (2, "")
    assert machine.name in done.stderr
    assert "Traceback" not in done.stderr


def test_the_archbench_of_another_checkout_does_not_measure_this_one(measured: Copy) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "archbench", "run", "attention/naive", "--case", CASE],
        cwd=measured.top,
        env={k: v for k, v in measured.environment.items() if not k.endswith("PYTHONPATH")} | {"HOME": os.devnull},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "would name a commit that was not measured" in done.stderr
