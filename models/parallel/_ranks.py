"""The driver's side of a call: start ranks with PyTorch's launcher, talk to the first of them, say how one ended.

``Ranks`` starts ``_launcher.py`` in a process of its own, which is torchrun in all but its command line: elastic
rendezvous, a supervisor per node, everybody ended when one ends. Rank 0 connects back over a Unix socket and passes
what it is asked on to the others. A rank that dies, hangs or never comes is named with its last lines; whatever
happens, no process is left.

More than one node: ``ARCHBENCH_NNODES``, ``ARCHBENCH_NODE_RANK`` and ``ARCHBENCH_RDZV_ENDPOINT`` (``archbench run``
sets them) are handed to the rendezvous. Node 0 drives; the others start the same ranks and follow.

Source: https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from archbench.models.parallel import ParallelCase
from archbench.track import Failed, Unavailable

START_S = 120.0  # until every rank has its model: the first import of torch on a cold disk takes half of it
CALL_S = 120.0  # without an answer: a call takes seconds
LAST_LINES = 5
LOOK_S = 0.1
NOTE = struct.Struct("<qqd")  # of a rank: calls begun, updates begun, seconds of the clock


@dataclass(frozen=True)
class Nodes:
    """Where ranks run. One node, unless the environment says otherwise."""

    count: int = 1
    rank: int = 0
    endpoint: str = ""  # host:port of the rendezvous; empty: this node, any port

    @classmethod
    def told(cls, environment: Mapping[str, str] = os.environ) -> Nodes:
        return cls(
            int(environment.get("ARCHBENCH_NNODES", "1")),
            int(environment.get("ARCHBENCH_NODE_RANK", "0")),
            environment.get("ARCHBENCH_RDZV_ENDPOINT", ""),
        )


class Ranks:
    """The ranks of one contender at one case: ``size`` of them over ``nodes``.

    ``cap_bytes``: how much memory a rank may take (RLIMIT_DATA), its libraries included; 0: all there is.
    """

    def __init__(
        self, module: str, case: ParallelCase, size: int, nodes: Nodes | None = None, cap_bytes: int = 0
    ) -> None:
        nodes = nodes or Nodes.told()
        if size % nodes.count:
            raise Unavailable(f"{size} ranks cannot be spread over {nodes.count} nodes")
        self.size = size
        self._folder = Path(tempfile.mkdtemp(prefix="archbench-ranks-"))
        self._notes = _notes(self._folder / "notes", size)
        key = secrets.token_bytes(16)
        listener = Listener(str(self._folder / "driver"), "AF_UNIX", authkey=key)
        spec = {
            "module": module,
            "case": asdict(case),
            "cap_bytes": cap_bytes,
            "folder": str(self._folder),
            "ranks_per_node": size // nodes.count,
            "nodes": nodes.count,
            "node_rank": nodes.rank,
            "endpoint": nodes.endpoint,
            "run_id": secrets.token_hex(8),
            "key": key.hex(),
        }
        (self._folder / "spec.json").write_text(json.dumps(spec))
        with (self._folder / "launcher.log").open("wb") as log:
            self._launcher = subprocess.Popen(
                [sys.executable, "-m", "archbench.models.parallel._launcher", str(self._folder / "spec.json")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._end = weakref.finalize(self, _end, self._launcher, self._folder)
        self._connection = self._accepted(listener)

    def ask(self, what: str, *arguments: Any, within_s: float = CALL_S) -> Any:
        """What rank 0 answers. Raises Failed where a rank ended, or none answered in time."""
        try:
            self._connection.send((what, arguments))
            until = time.monotonic() + within_s
            while not self._connection.poll(LOOK_S):
                self._alive()
                if time.monotonic() > until:
                    raise self._hanging(within_s)
            return self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._ended() from error

    def close(self) -> None:
        """End the ranks; quick where they wait for a question."""
        with contextlib.suppress(OSError, EOFError):
            self._connection.send(("close", ()))
            self._launcher.wait(10)
        self._end()

    def _accepted(self, listener: Listener) -> Connection:
        socket: Any = listener._listener._socket  # type: ignore[attr-defined]  # accept() has no time limit of its own
        socket.settimeout(LOOK_S)
        until = time.monotonic() + START_S
        with listener:
            while True:
                try:
                    return listener.accept()
                except TimeoutError:
                    self._alive()
                    if time.monotonic() > until:
                        raise self._hanging(START_S) from None

    def _alive(self) -> None:
        if self._launcher.poll() is not None:
            raise self._ended()

    def _ended(self) -> Failed:
        """Which rank ended, how, and its last lines."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._launcher.wait(30)  # it ends the other ranks first
        found = failure(self._folder)
        self._end()
        return found

    def _hanging(self, seconds: float) -> Failed:
        notes = [NOTE.unpack_from(self._notes, rank * NOTE.size) for rank in range(self.size)]
        least = min(note[:2] for note in notes)
        late = [rank for rank, note in enumerate(notes) if note[:2] == least]
        everyone = len(late) == self.size
        who = "no rank" if everyone else " and ".join(f"rank {rank}" for rank in late)
        what = f"{who} went on within {seconds:.0f} s" if everyone else f"{who} did not go on within {seconds:.0f} s"
        self._end()
        return Failed("timeout", f"{what}, in update {least[1]} of call {least[0]}")


def _notes(path: Path, size: int) -> mmap.mmap:
    """A word of progress from each rank of this node."""
    path.write_bytes(bytes(NOTE.size * size))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def failure(folder: Path) -> Failed:
    """What the launcher left about the rank that ended first."""
    try:
        found = json.loads((folder / "failure.json").read_text())
    except (OSError, ValueError):
        log = (folder / "launcher.log").read_text(errors="replace") if (folder / "launcher.log").exists() else ""
        lines = [line for line in log.splitlines() if line.strip()]
        return Failed("crashed", f"the launcher ended: {' | '.join(lines[-LAST_LINES:]) or 'without a word'}")
    how = f"was killed by {signal.Signals(-found['code']).name}" if found["code"] < 0 else f"ended with {found['code']}"
    said = f": {found['message']}" if found["message"] else ""
    last = f"; its last lines: {' | '.join(found['lines'])}" if found["lines"] else ""
    full = any(mark in (said + last).lower() for mark in ("can't allocate memory", "out of memory"))
    return Failed("oom" if full else "crashed", f"rank {found['rank']} {how}{said}{last}")


def _end(launcher: subprocess.Popen[bytes], folder: Path) -> None:
    """Nothing is left of a group: the launcher's session, and the ranks, which have sessions of their own."""
    for pid in [*_pids(folder), launcher.pid]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    launcher.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _pids(folder: Path) -> list[int]:
    """Ranks write theirs when they begin."""
    return [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]
