"""The ranks of one call on one host: started by a launcher of their own, and ended whatever happens.

Everything they leave is in one folder: notes of progress, process ids, logs, why they ended. It goes away with them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import weakref
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import psutil

from archbench.endings import out_of_memory_kills
from archbench.models.parallel._launch.ends import LAST_LINES, End, as_failure
from archbench.nodes import Nodes
from archbench.track import Failed, Unavailable

NOTE = struct.Struct("<qqd")  # of a rank: calls begun, updates begun, seconds of the clock
CLEARING_S = 5.0
PREFIX, HELD = "archbench-ranks-", "held"  # a folder, and the file in it that its owner keeps locked
OLD_S = 60.0
LAUNCHER = "archbench.models.parallel._launch.launcher"


class Group:
    """This host's part of a group of ranks."""

    def __init__(self, spec: dict[str, Any], nodes: Nodes) -> None:
        """``spec``: module, case, size, ranks_per_node, cap_bytes, run_id. Call ``start`` next."""
        self.nodes = nodes
        sweep(Path(tempfile.gettempdir()))
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._held = os.open(self.folder / HELD, os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._held, fcntl.LOCK_EX)
        started: list[subprocess.Popen[bytes]] = []  # the launcher, once there is one
        self.end = weakref.finalize(self, _end, started, self.folder, self._held, os.getpid())
        self._started = started
        self.notes = _notes(self.folder / "notes", spec["size"])
        self._kills = out_of_memory_kills()
        own = {"folder": str(self.folder), "nodes": asdict(nodes), "node_rank": nodes.rank, "starter": os.getpid()}
        self._spec = spec | own

    def start(self, key: bytes = b"", driver: str = "") -> None:
        """Rank 0 connects to ``driver``, a socket, with ``key``."""
        (self.folder / "spec.json").write_text(json.dumps(self._spec | {"key": key.hex(), "driver": driver}))
        with (self.folder / "launcher.log").open("wb") as log:
            self.launcher = subprocess.Popen(
                [sys.executable, "-m", LAUNCHER, str(self.folder / "spec.json")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C is for us; the session stays, by which a run finds what it started
            )
        self._started.append(self.launcher)

    def failure(self) -> Failed | Unavailable:
        """Why the group ended, where nobody asked it to."""
        return as_failure(self.cause(), self.nodes.count, self._kills)

    def cause(self) -> End:
        try:
            return msgspec.json.decode((self.folder / "failure.json").read_bytes(), type=End)
        except OSError:
            code = self.launcher.poll()
        if code == 0:
            return End(rank=None, node=self.nodes.rank, code=0, said="every rank had ended, and nobody had asked it to")
        lines = [
            line for line in (self.folder / "launcher.log").read_text(errors="replace").splitlines() if line.strip()
        ]
        return End(rank=None, node=self.nodes.rank, code=code, lines=tuple(lines[-LAST_LINES:]))


def sweep(parent: Path) -> None:
    """Remove folders whose owner was killed together with its launcher: nobody else is there to do it."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (folder / HELD).open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(held.fileno()).st_mtime > OLD_S:  # a new one is locked in a moment
                shutil.rmtree(folder, ignore_errors=True)


def _notes(path: Path, size: int) -> mmap.mmap:
    """A word of progress from each rank of this host."""
    path.write_bytes(bytes(NOTE.size * size))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def pids(folder: Path) -> dict[int, int]:
    """Process ids by rank. Ranks write theirs when they begin."""
    found = {}
    for path in folder.glob("pid-*"):
        rank = path.read_text().partition(" ")[0]
        found[int(rank or -1)] = int(path.name.removeprefix("pid-"))
    return found


def _end(started: list[subprocess.Popen[bytes]], folder: Path, held: int, owner: int) -> None:
    """Nothing is left of a group: the launcher's process group, and the ranks, which have sessions of their own."""
    if os.getpid() != owner:  # a fork of the owner ends: the group is not its own
        return
    left = []
    for pid in [*(launcher.pid for launcher in started), *pids(folder).values()]:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            left += [process, *process.children(recursive=True)]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    for launcher in started:
        launcher.wait()
    until = time.monotonic() + CLEARING_S
    while any(_lives(process) for process in left) and time.monotonic() < until:
        time.sleep(0.01)
    shutil.rmtree(folder, ignore_errors=True)
    os.close(held)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
