"""Child processes: answers, crashes, hangs, and nothing left behind."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from archbench.harness.isolate import Died, run_isolated

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_bytes_come_back_whole_however_many() -> None:
    assert run_isolated(lambda: b"x" * 3_000_000, 30) == b"x" * 3_000_000


def test_an_exception_is_a_crash() -> None:
    def work() -> bytes:
        raise RuntimeError("broken")

    answer = run_isolated(work, 30)
    assert isinstance(answer, Died)
    assert (answer.status, answer.reason) == ("crashed", "RuntimeError: broken")


@pytest.mark.parametrize(
    ("number", "status", "text"), [(signal.SIGSEGV, "crashed", "SIGSEGV"), (signal.SIGKILL, "oom", "memory")]
)
def test_a_signal_is_named(number: int, status: str, text: str) -> None:
    def work() -> bytes:
        faulthandler.disable()  # pytest's would print this deliberate crash
        os.kill(os.getpid(), number)
        return b""

    answer = run_isolated(work, 30)
    assert isinstance(answer, Died)
    assert answer.status == status
    assert text in answer.reason


def test_exiting_without_an_answer_is_a_crash() -> None:
    assert run_isolated(lambda: b"", 30) == Died("crashed", "the process exited with code 0 and no result")


def test_a_hanging_child_is_a_timeout_and_takes_its_own_children_with_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def work() -> bytes:
        note.write_text(str(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid))
        time.sleep(600)
        return b""

    answer = run_isolated(work, 3)
    assert answer == Died("timeout", "no result within 3 s")
    grandchild = int(note.read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(grandchild) and psutil.Process(grandchild).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the grandchild is still running"
        time.sleep(0.05)
