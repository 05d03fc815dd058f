"""A command under supervision: its time is limited, what it says is kept short, and nothing it started outlives it.

What measures commits runs foreign code for hours. It gets a session of its own and is asked to end when its time is
over, when we are told to, and (on Linux) when we die; what does not listen is killed with all its descendants, who come
back to us when their parents end, because we are their *subreaper*.

Source: prctl(2), PR_SET_CHILD_SUBREAPER and PR_SET_PDEATHSIG
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from archbench.reasons import short

LONGEST_LOG = 4 << 20  # bytes: a command that talks without end must not fill the card
GRACE_S = 60.0  # for a run to put its results away
_TICK_S = 0.2
_ROUNDS = 5  # what was being forked while we looked is seen in the next
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Ended:
    """How a command ended. ``code`` is None where its time was over; ``said`` is the last it said."""

    code: int | None
    said: str


def supervise(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    deadline_s: float,
    hold: Collection[int] = (),
    cores: Collection[int] = (),
) -> Ended:
    """Run a command in ``folder`` until it ends or ``deadline_s`` is over. Raises OSError where it cannot be started.

    ``hold`` are open files it inherits: a lock that holds as long as any of it lives. ``cores`` are those it may use;
    none: ours. An exception that comes up here while it runs, KeyboardInterrupt too, ends it first.
    """
    parent = os.getpid()

    def follow() -> None:
        if cores:
            os.sched_setaffinity(0, cores)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it died before we asked to follow it
                os._exit(1)

    log.parent.mkdir(parents=True, exist_ok=True)
    with _nothing_is_left(), log.open("ab") as output:
        begins = output.tell()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(hold),
            preexec_fn=follow,  # noqa: PLW1509 - the agent has no threads
        )
        try:
            code = _waited(process, log, deadline_s)
        finally:
            _end(process)
    return Ended(code, _last_words(log, begins))


def _waited(process: subprocess.Popen[bytes], log: Path, deadline_s: float) -> int | None:
    ends = time.monotonic() + deadline_s
    while time.monotonic() < ends:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_TICK_S)
        if log.stat().st_size > LONGEST_LOG:
            os.truncate(log, 0)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_words(log: Path, begins: int) -> str:
    """The last lines of a command's output that say something."""
    with log.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(min(begins, size), size - 4096))
        text = file.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return short(" | ".join(lines[-3:]))


@contextmanager
def _nothing_is_left() -> Iterator[None]:
    """What was started within and is still there at the end is killed, whoever its parent was."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    before = {process.pid for process in psutil.Process().children()}
    try:
        yield
    finally:
        for _ in range(_ROUNDS):
            left = [p for child in psutil.Process().children() if child.pid not in before for p in _family(child)]
            if not left:
                break
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, 1.0)


def _family(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [*process.children(recursive=True), process]
    return []
