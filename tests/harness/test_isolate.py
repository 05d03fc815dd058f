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

from archbench.harness import isolate
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
    ("number", "text"),
    [
        (signal.SIGSEGV, "killed by SIGSEGV"),
        (signal.SIGKILL, "killed by SIGKILL: by the system for want of memory, or by itself"),
        (40, "killed by signal 40"),
    ],
)
def test_a_signal_is_named(number: int, text: str) -> None:
    def work() -> bytes:
        faulthandler.disable()  # pytest's would print this deliberate crash
        os.kill(os.getpid(), number)
        return b""

    answer = run_isolated(work, 30)
    assert answer == Died("crashed", text)


def test_exiting_without_an_answer_is_a_crash() -> None:
    assert run_isolated(lambda: b"", 30) == Died("crashed", "the process exited with code 0 and no result")


def test_a_kill_the_kernel_counts_is_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([7, 8])
    monkeypatch.setattr(isolate, "out_of_memory_kills", lambda: next(counts))
    answer = run_isolated(lambda: os.kill(os.getpid(), signal.SIGKILL) or b"", 30)
    assert answer == Died("oom", "killed by the system for want of memory")


def test_the_kernels_count_is_read_where_there_is_one(tmp_path: Path) -> None:
    file = tmp_path / "vmstat"
    assert isolate.out_of_memory_kills(file) is None
    file.write_text("nr_free_pages 12\n")
    assert isolate.out_of_memory_kills(file) is None
    file.write_text("nr_free_pages 12\noom_kill 3\nx 1\n")
    assert isolate.out_of_memory_kills(file) == 3


def test_a_child_that_joins_its_parents_group_is_ended_in_time() -> None:
    def work() -> bytes:
        os.setpgid(0, os.getpgid(os.getppid()))
        while True:
            time.sleep(0.1)

    started = time.monotonic()
    assert run_isolated(work, 0.5) == Died("timeout", "no result within 0.5 s")
    assert time.monotonic() - started < 10


def stays(note: Path) -> None:
    """A daemon: a child in a session of its own that holds every file its parent had open."""
    if os.fork() == 0:
        os.setsid()
        note.write_text(str(os.getpid()))
        time.sleep(600)
        os._exit(0)
    while not note.exists() or not note.read_text():
        time.sleep(0.01)


@pytest.mark.parametrize("answered", [True, False])
def test_who_holds_the_pipe_open_delays_nothing_and_is_killed(tmp_path: Path, answered: bool) -> None:
    note = tmp_path / "pid"

    def work() -> bytes:
        stays(note)
        return b"here" if answered else b""

    started = time.monotonic()
    answer = run_isolated(work, 60)
    assert time.monotonic() - started < 20
    assert answer == (b"here" if answered else Died("crashed", "the process exited with code 0 and no result"))
    assert not psutil.pid_exists(int(note.read_text()))


def test_a_program_in_a_session_of_its_own_does_not_survive_its_cell(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def work() -> bytes:
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        note.write_text(str(subprocess.Popen(command, start_new_session=True).pid))
        return b"x"

    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        assert run_isolated(work, 60) == b"x"
        assert not psutil.pid_exists(int(note.read_text()))
        assert bystander.poll() is None, "a child we had before was killed"
    finally:
        bystander.kill()
        bystander.wait()


def test_rubbish_in_the_pipe_is_a_crash() -> None:
    code = """
import contextlib, os
from archbench.harness.isolate import run_isolated

def work():
    for number in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(number, b"rubbish " * 10)
    return b"x"

print(run_isolated(work, 30))
"""
    # In a process of its own: the rubbish goes into every file that is open.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "crashed" in done.stdout
    assert "something else was written into the pipe" in done.stdout


def test_a_child_that_forks_speaks_once() -> None:
    def work(send: isolate.Send) -> None:
        os.fork()
        for i in range(3):
            send(bytes([i]))

    assert list(isolate.reports(work, 30)) == [b"\0", b"\1", b"\2"]


def test_the_limit_holds_between_two_reports() -> None:
    def work(send: isolate.Send) -> None:
        for _ in range(4):
            time.sleep(0.4)
            send(b"x")
        time.sleep(600)

    assert list(isolate.reports(work, 1.2)) == [b"x"] * 4 + [Died("timeout", "no result within 1.2 s")]


def test_what_a_child_prints_is_not_on_our_stdout() -> None:
    code = """
import os
from archbench.harness.isolate import run_isolated
print(run_isolated(lambda: os.write(1, b"noise") and b"x", 9))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("b'x'\n", "noise")


def test_long_last_words_are_cut() -> None:
    def work() -> bytes:
        raise RuntimeError("\ud800" + "long " * 10_000_000)

    answer = run_isolated(work, 60)
    assert isinstance(answer, Died)
    assert answer.reason.startswith("RuntimeError: \\ud800long")
    assert len(answer.reason) <= 500


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
