"""A whole life with the project's own archbench: killed outright in a cell, and going on there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from agent_desk import Desk
from archbench.hardware.agent.config import as_toml
from archbench.hardware.agent.lock import is_running
from archbench.harness.asv_files import read
from quick_track import add_quick_track, contender
from working_copy import Copy

WAITS = """begun = Path(os.environ["DESK"]) / "begun"
begun.touch()
while begun.with_name("wait").exists():
    time.sleep(0.05)"""


def test_a_killed_agent_goes_on_in_the_cell_where_it_was_and_delivers_once(tree: Copy, tmp_path: Path) -> None:
    add_quick_track(tree.top)
    (tree.top / "kernels" / "quick" / "doubled.py").write_text(contender("2 * x", WAITS))
    tree.git("add", "-A")
    tree.git("commit", "-qm", "quick")
    desk = Desk(tmp_path, repository=str(tree.top), suites=["quick/added", "quick/doubled"], python=sys.executable)
    desk.config.file.write_text(as_toml(desk.config))
    command = [sys.executable, "-m", "archbench", "agent", "run", "--once", "--state", str(desk.state)]
    (tmp_path / "wait").touch()
    agent = subprocess.Popen(command, env=tree.environment, cwd=tmp_path)
    commit = tree.git("rev-parse", "HEAD")
    file = desk.state / "work" / commit / "run" / "cells.jsonl"
    try:
        _wait_for(tmp_path / "begun", agent)
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.wait()
    (before,), header = read(file)
    assert header is not None
    assert (header.machine, header.commit, header.dirty) == ("pi5", commit, False)
    (tmp_path / "wait").unlink()
    while is_running(desk.state):  # what it started was asked to end
        time.sleep(0.05)
    done = subprocess.run(command, env=tree.environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert f"{commit[:12]}: measuring, 1 cells are there" in done.stderr
    assert list(desk.delivered()) == [header.run]
    found = tmp_path / "found.jsonl"
    path = f"machine/pi5:runs/{header.run}/pi5/cells/{header.run}.jsonl"
    found.write_bytes(subprocess.check_output(["git", "-C", str(desk.remote), "show", path]))
    cells, same = read(found)
    assert same == header
    by_case = {(cell.contender, cell.case): cell for cell in cells}
    assert len(by_case) == len(cells) == 4
    assert by_case[before.contender, before.case] == before
    assert {cell.status for cell in cells} == {"ok"}


def _wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    while not file.exists():
        assert process.poll() is None, "the agent ended"
        time.sleep(0.05)
