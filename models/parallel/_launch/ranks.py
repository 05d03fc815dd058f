"""The driver's side of a call: start ranks with PyTorch's launcher, talk to the first of them, say how one ended.

``Ranks`` starts ``_launch/launcher.py`` in a process of its own, which is torchrun in all but its command line: elastic
rendezvous, a supervisor per host, everybody ended when one ends. Rank 0 connects back over a Unix socket and passes
what it is asked on to the others. A rank that dies, hangs or never comes is named with its last lines; whatever
happens, no process is left.

More than one host: ``archbench run --nnodes`` keeps a store at the first one, on which every group of ranks is
published; the others start the same ranks and follow (``_nodes.py``).

Source: https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import time
import weakref
from dataclasses import asdict
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from archbench.hardware.gpu import detect_gpus
from archbench.models.parallel import BACKENDS, ParallelCase
from archbench.models.parallel._launch.group import NOTE, Group, pids
from archbench.models.parallel._launch.hang import late
from archbench.nodes import Nodes
from archbench.track import Failed, Unavailable

__all__ = ["CALL_S", "NOTE", "START_S", "Ranks"]

START_S = 120.0  # until every rank has its model: the first import of torch on a cold disk takes half of it
CALL_S = 120.0  # without an answer: a call takes seconds
LOOK_S = 0.1
ENDING_S = 10.0  # for the launcher to end the others and say who was first

_OPEN: weakref.WeakSet[Ranks] = weakref.WeakSet()


def look() -> None:
    """For a driver that is busy with work of its own: raises Failed where one of its ranks has ended meanwhile."""
    for ranks in list(_OPEN):
        ranks._alive()


class Ranks:
    """The ranks of one contender at one case: ``size`` of them over ``nodes``.

    ``cap_bytes``: how much memory a rank may take (RLIMIT_DATA), its libraries included; 0: all there is.
    """

    def __init__(
        self, module: str, case: ParallelCase, size: int, nodes: Nodes | None = None, cap_bytes: int = 0
    ) -> None:
        nodes = nodes or Nodes.told()
        if size < nodes.count:
            nodes = Nodes()  # one process is what several hosts are compared with
        if size % nodes.count:
            raise Unavailable(f"{size} ranks cannot be spread over {nodes.count} nodes")
        self.size = size
        self._here = range(size // nodes.count)
        if BACKENDS[case.backend] == "cuda":
            _need_gpus(len(self._here))
        spec = {
            "module": module,
            "case": asdict(case),
            "cap_bytes": cap_bytes,
            "size": size,
            "ranks_per_node": len(self._here),
            "run_id": secrets.token_hex(8),
        }
        self._group = Group(spec, nodes)
        key, address = secrets.token_bytes(16), socket_of(self._group.folder)
        listener = Listener(address, "AF_UNIX", authkey=key)
        self._group.start(key, address)
        self._connection = self._accepted(listener)
        _OPEN.add(self)

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

    def pids(self) -> list[int]:
        """The ranks' processes on this host."""
        return list(pids(self._group.folder).values())

    def close(self) -> None:
        """End the ranks; quick where they wait for a question."""
        _OPEN.discard(self)
        with contextlib.suppress(OSError, EOFError, subprocess.TimeoutExpired):
            self._connection.send(("close", ()))
            self._group.launcher.wait(ENDING_S)
        self._group.end()

    def _accepted(self, listener: Listener) -> Connection:
        socket: Any = listener._listener._socket  # type: ignore[attr-defined]  # accept() has no time limit of its own
        socket.settimeout(LOOK_S)
        until = time.monotonic() + START_S
        try:
            while True:
                try:
                    return listener.accept()
                except TimeoutError:
                    self._alive()
                    if time.monotonic() > until:
                        raise self._hanging(START_S) from None
        finally:
            with contextlib.suppress(FileNotFoundError):  # where the group has ended, its folder is gone
                listener.close()

    def _alive(self) -> None:
        if self._group.launcher.poll() is not None:
            raise self._ended()

    def _ended(self) -> Failed | Unavailable:
        """Which rank ended, how, and its last lines."""
        _OPEN.discard(self)
        try:
            self._group.launcher.wait(ENDING_S)  # it ends the other ranks first
            found = self._group.failure()
        except subprocess.TimeoutExpired:  # one of them cannot be ended
            return self._hanging(ENDING_S)
        self._group.end()
        return found

    def _hanging(self, seconds: float) -> Failed:
        group = self._group
        notes = [NOTE.unpack_from(group.notes, rank * NOTE.size)[:2] for rank in range(self.size)]
        who = late(group.folder, pids(group.folder), notes, self._here, group.nodes.count)
        group.end()
        return Failed("timeout", f"no answer within {seconds:.0f} s: {who}")


def socket_of(folder: Path) -> str:
    """Where rank 0 finds the driver: a name without a file where the system has such, for paths have to be short."""
    return f"\0{folder.name}" if sys.platform == "linux" else str(folder / "driver")


def _need_gpus(count: int) -> None:
    """Raises Unavailable where this host is known to have fewer."""
    found = detect_gpus()
    if len(found.visible) < count:
        why = f" ({found.reason})" if found.reason else ""
        raise Unavailable(f"needs {count} GPU{'s' * (count > 1)}, here: {len(found.visible) or 'none'}{why}")
