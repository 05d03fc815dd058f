"""What the hosts of a run tell each other, on the store that is also their rendezvous.

The first host's run keeps one TCPStore for as long as it lasts (``_nodes.py``). Every group of ranks is published in it
under the next number; the other hosts start their part of it. Beside that: who is there, what failed, what is over.

Source: https://docs.pytorch.org/docs/stable/distributed.html#torch.distributed.TCPStore
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from torch.distributed import PrefixStore, Store, TCPStore

from archbench.models import parallel
from archbench.models.parallel._launch.ends import End
from archbench.nodes import Nodes

LOOK_S = 0.2
SHARED = ("module", "case", "cap_bytes", "size", "ranks_per_node", "run_id")  # of a group's spec, on every host


def connected(nodes: Nodes, within_s: float, *, keep: bool = False) -> Store:
    """The store of the run; ``keep``: it lives in this process. Raises RuntimeError."""
    server = TCPStore(
        nodes.host, nodes.port, is_master=keep, timeout=timedelta(seconds=within_s), wait_for_workers=False
    )
    return PrefixStore("archbench", server)


def about() -> dict[str, str]:
    """What must be the same on every host for their ranks to be parts of one measurement."""
    code = hashlib.sha256()
    for path in sorted(path for folder in parallel.__path__ for path in Path(folder).rglob("*.py")):
        code.update(path.read_bytes())
    versions = {name: version(name) for name in ("archbench", "torch", "numpy")}
    return versions | {"python": platform.python_version(), "the code of this track": code.hexdigest()[:12]}


def differences(here: dict[str, str], first: dict[str, str]) -> str:
    """By name; empty where there are none."""
    return ", ".join(
        f"{name} {here.get(name, 'absent')} here and {first.get(name, 'absent')} on the first host"
        for name in sorted({*here, *first})
        if here.get(name) != first.get(name)
    )


class Group:
    """A group of ranks as the board knows it."""

    def __init__(self, store: Store, number: int, nodes: int) -> None:
        self._store, self.number, self._nodes = store, number, nodes

    def failures(self, within_s: float) -> list[End]:
        """How the other hosts' parts failed, as far as they say so; waits for a cause among them."""
        until = time.monotonic() + within_s
        while True:
            keys = [f"failed/{self.number}/{node}" for node in range(1, self._nodes)]
            found = [msgspec.json.decode(self._store.get(key), type=End) for key in keys if self._store.check([key])]
            if any(not end.lost for end in found) or len(found) == len(keys) or time.monotonic() >= until:
                return found
            time.sleep(LOOK_S)

    def fail(self, end: End) -> None:
        self._store.set(f"failed/{self.number}/{end.node}", msgspec.json.encode(end).decode())

    def is_over(self) -> bool:
        """Whether the first host is done with it."""
        return self._store.check([f"over/{self.number}"])

    def finish(self) -> None:
        self._store.set(f"over/{self.number}", "1")


def publish(nodes: Nodes, spec: dict[str, Any]) -> Group:
    """Tell the other hosts to start their part of a group. Its launcher is this process."""
    store = connected(nodes, 30)
    number = store.add("groups", 1)
    store.set(f"group/{number}", json.dumps({name: spec[name] for name in SHARED} | {"launcher": os.getpid()}))
    return Group(store, number, nodes.count)


def published(store: Store, number: int) -> dict[str, Any] | None:
    """The group of this number, where there is one already."""
    key = f"group/{number}"
    return json.loads(store.get(key)) if store.check([key]) else None
