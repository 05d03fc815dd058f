"""The processes of a run: how they are started, and that none of them outlives it.

asv's fork server and our cells lead process groups of their own, so a signal to asv's group reaches neither. All of
them stay in the session they were started in: that is what is looked for when a run ends, whoever their parent is by
then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ROUNDS = 3  # one that was being forked while we looked is seen in the next
_PATIENCE_S = 5.0  # for the kernel to take down what was killed


@contextmanager
def interruptible() -> Iterator[None]:
    """Within: SIGTERM (``timeout``) and SIGHUP (a closed terminal) interrupt as Ctrl-C does. Main thread only.

    Only the first one counts: what it interrupts is then left to put its results away.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for ending in before:
            signal.signal(ending, signal.SIG_IGN)
        raise KeyboardInterrupt

    # One that is ignored stays so: that is how nohup and a shell's background jobs ask for it.
    before = {ending: signal.getsignal(ending) for ending in _ENDINGS}
    before = {ending: handler for ending, handler in before.items() if handler is not signal.SIG_IGN}
    for ending in before:
        signal.signal(ending, interrupt)
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)


@contextmanager
def own_session(
    command: Sequence[str], environment: Mapping[str, str], log: Path, keep: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own; when the block ends, nothing of that session is left.

    ``keep`` are open files it inherits: a lock that must hold as long as it lives, even if we do not.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            pass_fds=tuple(keep),
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for _ in range(_ROUNDS):
            members = _members(process.pid)
            for member in members:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(members, _PATIENCE_S)


def _members(leader: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for number in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getsid(number) == leader:
                process = psutil.Process(number)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found
