"""The outbox: what was measured waits here until the remote has it, through power cuts and full disks.

A finished run is copied beside its place, seen to the disk file by file, and renamed: it is there whole or not at all.
It leaves only when the remote was seen to hold it. Everything is named by its run, so that doing anything twice is
doing it once: a run that is put again, or that was pushed just before the power went, is recognised.

Source: the write, fsync, rename protocol, https://lwn.net/Articles/457667/
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from archbench.atomic import write_atomically
from archbench.hardware.agent.config import AgentConfig
from archbench.hardware.agent.deliver import Courier
from archbench.hardware.agent.keys import see_to_disk
from archbench.hardware.agent.signed_branch import MAX_FILE_BYTES, MAX_RUN_BYTES, RUNS, content_reason, path_reason
from archbench.hardware.agent.signed_git import GitFailed
from archbench.names import is_safe_name

FIRST_WAIT_S = 10.0
LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True)
class Delivered:
    """What a delivery did: runs the remote was seen to hold, runs that still wait, and why they do."""

    sent: tuple[str, ...]
    waiting: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True)
class Backoff:
    """How often in a row delivering failed, why, and before when (seconds since 1970) it is not tried again."""

    failures: int = 0
    not_before: float = 0.0
    reason: str = ""

    def left_s(self, now: float) -> float:
        """Seconds until the next attempt. A clock that was moved never makes them more than the longest wait."""
        left = self.not_before - now
        return left if 0 < left <= LONGEST_WAIT_S else 0.0

    def after(self, reason: str, now: float) -> Backoff:
        """The next, longer pause; a little chance keeps boards from knocking all at once."""
        wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(self.failures, 20)) * random.uniform(0.75, 1.0)
        return Backoff(self.failures + 1, now + wait, reason)


class Outbox:
    """The outbox of one agent, in its state folder."""

    def __init__(self, config: AgentConfig, now: Callable[[], float] = time.time) -> None:
        self.config = config
        self.folder = config.state / "outbox"
        self._now = now
        self._waiting = self.folder / "waiting"
        self._backoff = self.folder / "backoff.json"

    def put(self, run: str, folder: Path) -> None:
        """Take a finished run's results tree; ``folder`` may be removed afterwards. Files no reader reads stay behind.

        Raises ValueError for a tree the publishing side would refuse, OSError (a full disk): then nothing was taken.
        """
        if not is_safe_name(run):
            raise ValueError(f"run {run[:60]!r} is not a usable name")
        self._waiting.mkdir(parents=True, exist_ok=True)
        with self._lock("put.lock", wait=True):
            for old in self.folder.glob(".staged-*"):
                shutil.rmtree(old)
            if (self._waiting / run).exists():
                return
            files = self._files(run, folder)
            staged = self.folder / f".staged-{secrets.token_hex(4)}"
            try:
                for name, content in files.items():
                    _write(staged / name, content)
                for place, _, _ in os.walk(staged, topdown=False):
                    see_to_disk(Path(place))
                os.rename(staged, self._waiting / run)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                raise
            see_to_disk(self._waiting)

    def waiting(self) -> tuple[str, ...]:
        """The runs the remote is not known to have, oldest name first."""
        with contextlib.suppress(FileNotFoundError):
            return tuple(sorted(entry.name for entry in os.scandir(self._waiting)))
        return ()

    def backoff(self) -> Backoff:
        """What the last failure left, for a status."""
        try:
            return Backoff(**json.loads(self._backoff.read_bytes()))
        except (OSError, ValueError, TypeError):  # none, or half of one after a power cut: then there is no pause
            return Backoff()

    def deliver(self, *, at_once: bool = False) -> Delivered:
        """Commit what waits to the machine's branch and push it. What goes wrong is the reason, never an exception.

        ``at_once`` does not mind the pause after a failure.
        """
        waiting = self.waiting()
        if not waiting:
            return Delivered((), ())
        before = self.backoff()
        left = before.left_s(self._now())
        if left and not at_once:
            return Delivered((), waiting, f"next attempt in {left:.0f} s, after: {before.reason}")
        try:
            with self._lock("lock", wait=False) as lock:
                for old in self.folder.glob(".sent-*"):
                    shutil.rmtree(old)
                sent, reason = Courier(self.config, self.folder, lock).deliver({n: self._waiting / n for n in waiting})
                for run in sent:
                    self._drop(run)
                if reason:
                    raise GitFailed(reason)
                self._backoff.unlink(missing_ok=True)
                return Delivered(sent, self.waiting())
        except BlockingIOError:
            return Delivered((), waiting, "another delivery is under way")
        except (GitFailed, OSError, ValueError) as error:
            left_waiting = self.waiting()
            with contextlib.suppress(OSError):  # a full disk has no room for the pause either
                paused = before.after(str(error), self._now())
                write_atomically(self._backoff, json.dumps(vars(paused)).encode())
            return Delivered(tuple(run for run in waiting if run not in left_waiting), left_waiting, str(error))

    def _files(self, run: str, folder: Path) -> dict[str, bytes]:
        """What of a results tree is delivered, by its place. Raises ValueError, OSError."""
        machine = self.config.machine
        files: dict[str, bytes] = {}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() or not path.is_file() or path_reason(f"{RUNS}/{run}/{name}", machine):
                continue
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"{path} has more than {MAX_FILE_BYTES} bytes")
            files[name] = path.read_bytes()
            reason = content_reason(name, files[name], machine)
            if reason:
                raise ValueError(f"{path} {reason}")
        if not any(name.endswith(".jsonl") for name in files):
            raise ValueError(f"{folder} holds no run of {machine!r}")
        if sum(map(len, files.values())) > MAX_RUN_BYTES:
            raise ValueError(f"{folder} holds more than {MAX_RUN_BYTES} bytes")
        return files

    def _drop(self, run: str) -> None:
        """Take out a run the remote has, in one step: half of it would look like another run."""
        gone = self.folder / f".sent-{secrets.token_hex(4)}"
        os.rename(self._waiting / run, gone)
        shutil.rmtree(gone)

    @contextlib.contextmanager
    def _lock(self, name: str, *, wait: bool) -> Iterator[int]:
        """Hold a lock of this outbox. Raises BlockingIOError where somebody else does and ``wait`` is false."""
        with (self.folder / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield file.fileno()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
