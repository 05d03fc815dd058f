"""A run that was cut off: what goes on where it stopped, what is measured again, and what cannot go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from archbench.cells import Cell, Metric, Run, Started, encode
from archbench.harness.asv_files import read
from archbench.harness.resume import CUT_OFF_TWICE, claim, continued, mend, release
from archbench.harness.session import begun
from quick_track import add_quick_track, contender
from working_copy import Copy

COMMIT = "a" * 40
RUN = Run(
    schema=1,
    run="20260102T030405Z-abcdef",
    machine="pi5",
    commit=COMMIT,
    dirty=False,
    started="2026-01-02",
    versions={"python": "3.11.2"},
)
SAME = ("pi5", COMMIT, False, {"python": "3.11.2"})


def cell(name: str) -> Cell:
    metrics = {"latency_s": Metric(1.0, "s"), "slowdown": Metric(1.0, "ratio")}
    return Cell(track="quick", case="n1000", contender=name, baseline="added", status="ok", metrics=metrics)


def started(name: str) -> Started:
    return Started(track="quick", case="n1000", contender=name, baseline="added")


def lines(*records: Run | Cell | Started) -> bytes:
    return b"".join(encode(record) + b"\n" for record in records)


@pytest.mark.parametrize("tail", [b"", b'{"record":"ce', b"\0" * 512, b"\0" * 512 + b"\n", b'{"record":"run"}\n{'])
def test_a_file_is_cut_before_what_is_no_record(tail: bytes, tmp_path: Path) -> None:
    file, whole = tmp_path / "cells.jsonl", lines(RUN, started("added"), cell("added"))
    file.write_bytes(whole + tail)
    mend(file)
    assert file.read_bytes() == whole


def test_a_file_of_half_a_header_is_that_of_a_run_that_begins(tmp_path: Path) -> None:
    file = tmp_path / "cells.jsonl"
    file.write_bytes(encode(RUN)[:40])
    mend(file)
    assert continued(file, *SAME) is None
    mend(tmp_path / "absent")
    assert continued(tmp_path / "absent", *SAME) is None


def test_a_run_goes_on_under_its_own_name(tmp_path: Path) -> None:
    file = tmp_path / "cells.jsonl"
    file.write_bytes(lines(RUN, cell("added")))
    assert continued(file, *SAME) == RUN


@pytest.mark.parametrize(
    ("here", "says"),
    [
        (("pi5", "b" * 40, False, {"python": "3.11.2"}), "commit aaaaaaaaaaaa, not bbbbbbbbbbbb"),
        (("pi4", COMMIT, False, {"python": "3.11.2"}), "machine pi5, not pi4"),
        (("pi5", COMMIT, True, {"python": "3.11.2"}), "a work tree that differs from its commit"),
        (("pi5", COMMIT, False, {"python": "3.11.3"}), "python 3.11.2, not 3.11.3"),
        (("pi5", COMMIT, False, {"python": "3.11.2", "onnxruntime": "1.32"}), "onnxruntime absent, not 1.32"),
    ],
)
def test_a_run_does_not_go_on_as_something_else(
    here: tuple[str, str, bool, dict[str, str]], says: str, tmp_path: Path
) -> None:
    file = tmp_path / "cells.jsonl"
    file.write_bytes(lines(RUN, cell("added")))
    with pytest.raises(ValueError, match="cannot go on here") as refused:
        continued(file, *here)
    assert says in str(refused.value)


def test_a_file_without_a_header_is_no_run(tmp_path: Path) -> None:
    file = tmp_path / "cells.jsonl"
    file.write_bytes(lines(cell("added")))
    with pytest.raises(ValueError, match="has no header"):
        continued(file, *SAME)


def test_marks_are_counted_before_and_after_the_cut(tmp_path: Path) -> None:
    file = tmp_path / "cells.jsonl"
    before = lines(RUN, started("added"), started("doubled"))
    file.write_bytes(before + lines(started("added")))
    assert begun(file, "quick", "n1000", "added", len(before)) == (1, 1)
    assert begun(file, "quick", "n1000", "doubled", len(before)) == (1, 0)
    assert begun(file, "quick", "n1000", "shifted", len(before)) == (0, 0)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and not the folder of a run"):
        claim(tmp_path, tmp_path / "cells.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_an_earlier_sitting_left_goes_but_for_the_cells(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    claim(folder, folder / "cells.jsonl")
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (folder / "results" / "pi5").mkdir(parents=True)
    (folder / "link").symlink_to(elsewhere)
    (folder / "asv.log").touch()
    (folder / "cells.jsonl").write_bytes(lines(RUN) + b"{")
    claim(folder, folder / "cells.jsonl")
    assert sorted(path.name for path in folder.iterdir()) == [".archbench-run", "cells.jsonl"]
    assert (folder / "cells.jsonl").read_bytes() == lines(RUN)
    assert (elsewhere / "kept").exists()
    release(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


# In a copy of the tree: `doubled` waits where a file says so; the machine then loses its power.
WAITS = """Path(os.environ["BEGUN"]).touch()
while Path(os.environ["BEGUN"] + ".wait").exists():
    time.sleep(0.05)"""


@pytest.fixture(scope="module")
def quick(tree: Copy) -> Copy:
    add_quick_track(tree.top)
    (tree.top / "kernels" / "quick" / "doubled.py").write_text(contender("2 * x", WAITS))
    tree.git("add", "-A")
    tree.git("commit", "-qm", "quick")
    return tree


class Desk:
    """Runs of one folder."""

    def __init__(self, tree: Copy, folder: Path) -> None:
        self.tree, self.keep, self.into, self.begun = tree, folder / "keep", folder / "into", folder / "begun"
        self.wait = folder / "begun.wait"
        self.file = self.keep / "cells.jsonl"
        self.environment = tree.environment | {"BEGUN": str(self.begun), "ARCHBENCH_MACHINE": "pi5"}

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "archbench", "run", "quick/added", "quick/doubled", "--case", "n1000"]
        return subprocess.Popen(
            [*command, "--keep-in", str(self.keep), "--into", str(self.into)],
            cwd=self.tree.top,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def cut_off(self) -> None:
        """Start a run and take everything of it down while `doubled` is measured."""
        self.begun.unlink(missing_ok=True)
        self.wait.touch()
        running = self.start()
        try:
            while not self.begun.exists():
                assert running.poll() is None, running.communicate()
                time.sleep(0.05)
        finally:
            everything = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
            for process in everything:  # the first is the run itself: nobody is left to tidy up
                process.kill()
            psutil.wait_procs(everything[1:], 10)
            running.communicate()
        self.wait.unlink()

    def cells(self) -> tuple[dict[str, Cell], Run]:
        (file,) = (self.into / "pi5" / "cells").iterdir()
        cells, header = read(file)
        assert header is not None
        assert len(cells) == 2
        return {cell.contender: cell for cell in cells}, header


def finish(desk: Desk) -> tuple[dict[str, Cell], Run]:
    running = desk.start()
    said, _ = running.communicate(timeout=120)
    assert running.returncode == 0, said
    assert not desk.keep.exists()
    return desk.cells()


def test_a_run_that_lost_its_power_goes_on_at_the_cell_where_it_stopped(quick: Copy, tmp_path: Path) -> None:
    desk = Desk(quick, tmp_path)
    desk.cut_off()
    (before,), header = read(desk.file)
    with desk.file.open("ab") as file:
        file.write(b'{"record":"cell","tra')
    cells, run = finish(desk)
    assert run == header
    assert cells["added"] == before
    assert cells["doubled"].status == "ok"
    asv = json.loads(next((tmp_path / "into" / "pi5").glob("*-existing-*.json")).read_text())
    assert asv["commit_hash"] == run.commit


def test_a_cell_that_is_cut_off_twice_is_left_as_crashed(quick: Copy, tmp_path: Path) -> None:
    desk = Desk(quick, tmp_path)
    desk.cut_off()
    desk.cut_off()
    cells, _ = finish(desk)
    assert (cells["doubled"].status, cells["doubled"].reason) == ("crashed", CUT_OFF_TWICE)
    assert cells["added"].status == "ok"


def test_an_interruption_costs_no_life_and_another_commit_is_refused(quick: Copy, tmp_path: Path) -> None:
    desk = Desk(quick, tmp_path)
    for _ in range(2):
        desk.begun.unlink(missing_ok=True)
        desk.wait.touch()
        running = desk.start()
        while not desk.begun.exists():
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        running.terminate()
        said, _ = running.communicate(timeout=60)
        assert (running.returncode, f"goes on in {desk.keep}" in said.replace("\n", "")) == (130, True)
        assert not list(desk.into.rglob("*.jsonl"))
        assert sum(b'"record":"started"' in line for line in desk.file.read_bytes().splitlines()) == 1
    desk.wait.unlink()
    quick.git("commit", "-q", "--allow-empty", "-m", "another")
    running = desk.start()
    said, _ = running.communicate(timeout=60)
    assert (running.returncode, "cannot go on here: it was begun with commit" in said) == (2, True)
    quick.git("reset", "-q", "--hard", "HEAD~1")
    cells, _ = finish(desk)
    assert cells["doubled"].status == "ok"
    assert os.listdir(tmp_path / "into") != []
