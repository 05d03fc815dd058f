"""One cell, one child process: a contender that crashes, hangs or eats memory costs its own cell and no other.

The child is forked, because the parent (asv's fork server) has imported torch once and started no threads yet.
It leads its own process group, dies with its parent, and everything it started is killed when it is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from archbench.cells import Status

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Died:
    """How a child ended that gave no answer."""

    status: Status
    reason: str


def run_isolated(work: Callable[[], bytes], deadline_s: float) -> bytes | Died:
    """Run ``work`` in a forked child and return its bytes, or how it died. POSIX only.

    SIGKILL that we did not send is what the kernel's out-of-memory killer does, so it is reported as ``oom``.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(work, writer, parent)
    os.close(writer)
    received = bytearray()
    deadline = time.monotonic() + deadline_s
    timed_out = False
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            timed_out = True
            break
        if not select.select([reader], [], [], left)[0]:
            continue
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            break
        received += chunk
    os.close(reader)
    if timed_out:
        _kill_group(child)
    _, state = os.waitpid(child, 0)
    _kill_group(child)  # whatever the contender started and left behind
    if timed_out:
        return Died("timeout", f"no result within {deadline_s:g} s")
    if os.WIFSIGNALED(state):
        number = os.WTERMSIG(state)
        if number == signal.SIGKILL:
            return Died("oom", "killed by the system, most likely for want of memory")
        return Died("crashed", f"killed by {signal.Signals(number).name}")
    code = os.waitstatus_to_exitcode(state)
    if code != 0 or not received:
        last_words = received.decode(errors="replace").partition("\n")[0]
        return Died("crashed", last_words or f"the process exited with code {code} and no result")
    return bytes(received)


def _child(work: Callable[[], bytes], writer: int, parent: int) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before we asked to follow it
                os._exit(1)
        payload = work()
        view = memoryview(payload)
        while view:
            view = view[os.write(writer, view) :]
        code = 0
    except BaseException as error:  # noqa: BLE001 - the child must end here, whatever happened
        sys.excepthook(*sys.exc_info())
        os.write(writer, f"{type(error).__name__}: {error}".encode()[:2000])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _kill_group(child: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
