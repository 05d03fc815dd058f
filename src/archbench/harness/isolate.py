"""One cell, one child process: a contender that crashes, hangs or eats memory costs its own cell and no other.

The child is forked, because the parent (asv's fork server) has imported torch once and started no threads yet. It leads
its own process group and dies with its parent. What it started is killed when it is done: on Linux all of it, because
orphans come back to us (we are their *subreaper*) whatever session they moved to; elsewhere only its process group.

Answers come through a pipe, each behind a word that only this pair of processes knows and its length: we are done when
an answer is whole or the child is gone, even if somebody else still holds the pipe open.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from archbench.cells import Status
from archbench.endings import die_with, killer, out_of_memory_kills
from archbench.reasons import told

LONGEST_ANSWER = 1 << 28  # bytes: what claims to be longer is not an answer

Send = Callable[[bytes], None]

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
_LENGTH = struct.Struct("<q")
_END, _LAST_WORDS = -1, -2  # in place of a length: the work is done; what the child raised, in words
_TICK_S = 0.05  # how often the child is looked at where the system cannot wait for it
_CLEARING_S = 10.0


@dataclass(frozen=True)
class Died:
    """How a child ended that gave no answer."""

    status: Status
    reason: str


def run_isolated(work: Callable[[], bytes], deadline_s: float) -> bytes | Died:
    """Run ``work`` in a forked child and return its bytes, or how it died. POSIX only."""

    def once(send: Send) -> None:
        if payload := work():
            send(payload)

    with contextlib.closing(reports(once, deadline_s)) as answers:
        return next(answers, Died("crashed", "the process exited with code 0 and no result"))


def reports(work: Callable[[Send], None], limit_s: float) -> Generator[bytes | Died, None, None]:
    """Run ``work(send)`` in a forked child and yield what it sends, as it comes; at most ``limit_s`` between two.

    Ends with a ``Died`` when the child does not come to the end of ``work``. What the child prints goes to stderr:
    stdout is ours. ``oom`` needs a witness, the kernel's count of processes it killed for want of memory.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with _descendants_come_back():
        ours = {process.pid for process in psutil.Process().children()}
        parent, word, killed_before = os.getpid(), secrets.token_bytes(16), out_of_memory_kills()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _child(work, writer, word, parent)
        os.close(writer)
        ear = _Ear(reader, child, word)
        try:
            while isinstance(answer := ear.hear(limit_s), bytes):
                yield answer
            if isinstance(answer, Died):
                yield answer
            elif ear.state is not None and answer is _GONE:
                yield _how_it_ended(ear.state, killed_before)
        finally:
            ear.close()
            _clear(child, ours, reaped=ear.state is not None)


class _Sign:
    """What is heard instead of an answer."""


_DONE, _GONE = _Sign(), _Sign()


class _Ear:
    """The parent's end of the pipe."""

    def __init__(self, reader: int, child: int, word: bytes) -> None:
        self._reader, self._word, self._buffer = reader, word, bytearray()
        self._handle: int | None = None
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # an old kernel, or a sandbox that has no such call
                self._handle = os.pidfd_open(child)
        self._child = child
        self.state: int | None = None  # of the child, once it has ended
        os.set_blocking(reader, False)

    def close(self) -> None:
        os.close(self._reader)
        if self._handle is not None:
            os.close(self._handle)

    def hear(self, limit_s: float) -> bytes | Died | _Sign:
        """The next answer, how the child died, ``_DONE`` or ``_GONE``."""
        deadline = time.monotonic() + limit_s
        while True:
            # Asked before reading: what it wrote before it ended is in the pipe by then.
            gone = self._is_gone()
            pipe_open = self._read()
            answer = self._take()
            if answer is not None:
                return answer
            if gone:
                return _GONE
            left = deadline - time.monotonic()
            if left <= 0:
                return Died("timeout", f"no result within {limit_s:g} s")
            watched = [self._reader] * pipe_open + ([] if self._handle is None else [self._handle])
            select.select(watched, [], [], left if self._handle is not None else min(left, _TICK_S))

    def _is_gone(self) -> bool:
        if self.state is None:
            ended, state = os.waitpid(self._child, os.WNOHANG)
            self.state = state if ended else None
        return self.state is not None

    def _read(self) -> bool:
        """Take in what is there; False when the pipe is closed at the other end."""
        while True:
            try:
                chunk = os.read(self._reader, 1 << 20)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self._buffer += chunk
            if len(self._buffer) > LONGEST_ANSWER:
                return True

    def _take(self) -> bytes | Died | _Sign | None:
        head = len(self._word) + _LENGTH.size
        if len(self._buffer) < head:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer, len(self._word))
        if not self._buffer.startswith(self._word) or not _LAST_WORDS <= length <= LONGEST_ANSWER:
            return Died("crashed", "something else was written into the pipe that its answer comes through")
        if length == _END:
            return _DONE
        if length == _LAST_WORDS:
            return Died("crashed", self._buffer[head:].decode(errors="replace"))
        if len(self._buffer) < head + length:
            return None
        answer = bytes(self._buffer[head : head + length])
        del self._buffer[: head + length]
        return answer


def _how_it_ended(state: int, killed_before: int | None) -> Died:
    code = os.waitstatus_to_exitcode(state)
    if code >= 0:
        return Died("crashed", f"the process exited with code {code} and no result")
    if code == -signal.SIGKILL:
        now = out_of_memory_kills()
        if now is not None and killed_before is not None and now > killed_before:
            return Died("oom", "killed by the system for want of memory")
        return Died("crashed", "killed by SIGKILL: by the system for want of memory, or by itself")
    return Died("crashed", f"killed by {killer(code)}")


def _child(work: Callable[[Send], None], writer: int, word: bytes, parent: int) -> None:
    me = os.getpid()

    def write(length: int, payload: bytes) -> None:
        if os.getpid() != me:  # a contender forked, and its child came back here: one of them speaks
            os._exit(1)
        view = memoryview(word + _LENGTH.pack(length) + payload)
        while view:
            view = view[os.write(writer, view) :]

    code = 1
    try:
        os.setpgid(0, 0)
        os.dup2(2, 1)
        die_with(parent)
        work(lambda payload: write(len(payload), payload))
        write(_END, b"")
        code = 0
    except BaseException as error:  # noqa: BLE001 - the child must end here, whatever happened
        sys.excepthook(*sys.exc_info())
        write(_LAST_WORDS, told(error).encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def _descendants_come_back() -> Iterator[None]:
    """While inside, descendants whose parent ends become our children instead of init's. Linux only."""
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), ctypes.c_int()
    libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before))
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, before.value)


def _clear(child: int, ours: set[int], *, reaped: bool) -> None:
    """Kill and reap the child and what it left behind; ``ours`` are the children we had before it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if not reaped:
        os.kill(child, signal.SIGKILL)  # it may have left its group
        os.waitpid(child, 0)
    deadline = time.monotonic() + _CLEARING_S
    while left := [process for process in psutil.Process().children() if process.pid not in ours]:
        for process in left:
            with contextlib.suppress(psutil.Error):
                for one in (*process.children(recursive=True), process):
                    one.kill()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
        if time.monotonic() > deadline:
            return
        time.sleep(0.005)
