"""torchrun for the ranks of one call on one host: elastic launch, standard rendezvous, and who was the first to end.

A process of its own, because the launcher imports torch and leaves no thread of its supervisor in the process that
measures. It ends with whoever started it, and takes the ranks and their folder with it. What it leaves where ranks end
unasked is ``failure.json``: the end that the others follow from (``_launch/ends.py``), on whatever host that was.

Source: https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, get_args_parser

from archbench.atomic import write_atomically
from archbench.models.parallel._launch import board as _board
from archbench.models.parallel._launch.ends import End, first, gathered
from archbench.models.parallel._launch.worker import LAUNCHER
from archbench.nodes import Nodes
from archbench.reasons import told

WORKER = "archbench.models.parallel._launch.worker"
LOOK_S = 0.1  # how often the supervisor looks at its ranks, and this process at the one that started it
JOIN_S = 600  # until all hosts are at the rendezvous; the driver gives up before
OTHERS_S = 5.0  # for another host to say what happened there


def arguments(spec: dict[str, Any], nodes: Nodes) -> list[str]:
    """What torchrun would be called with."""
    return [
        f"--nnodes={nodes.count}",
        f"--nproc-per-node={spec['ranks_per_node']}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={nodes.endpoint or 'localhost:0'}",
        f"--rdzv-id={spec['run_id']}",
        # The store of several hosts is there already. A launcher that cannot bind the port would take whatever
        # listens there for the store of its group.
        f"--rdzv-conf=join_timeout={JOIN_S},is_host={0 if nodes.endpoint else 1}",
        *([f"--local-addr={nodes.host if nodes.rank == 0 else _address(nodes)}"] if nodes.count > 1 else []),
        f"--monitor-interval={LOOK_S}",
        "--max-restarts=0",
        f"--log-dir={spec['folder']}/logs",
        "--redirects=3",
        "--module",
        WORKER,
        f"{spec['folder']}/spec.json",
    ]


def _address(nodes: Nodes) -> str:
    """This host's address on the way to the first one. Nothing is sent."""
    family, kind, _, _, address = socket.getaddrinfo(nodes.host, nodes.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def _interface(nodes: Nodes) -> str | None:
    """The network interface that has this address: gloo would take the one of the host's name."""
    own = _address(nodes)
    cards = psutil.net_if_addrs().items()
    return next((name for name, addresses in cards if any(entry.address == own for entry in addresses)), None)


class Watch(threading.Thread):
    """Notes the moment at which each rank ends: the supervisor looks now and then, and has ended the others by then."""

    def __init__(self, ranks: int) -> None:
        super().__init__(daemon=True)
        self.ended_s: dict[int, float] = {}
        self._ranks = ranks

    def run(self) -> None:
        if not hasattr(os, "pidfd_open"):  # elsewhere than on Linux the exit signals have to do
            return
        handles: dict[int, int] = {}
        while len(handles) + len(self.ended_s) < self._ranks:
            for pid in _ranks_here() - set(handles.values()) - set(self.ended_s):
                with contextlib.suppress(ProcessLookupError):
                    handles[os.pidfd_open(pid)] = pid
            self._see(handles, LOOK_S)
        while handles:
            self._see(handles, None)

    def _see(self, handles: dict[int, int], wait_s: float | None) -> None:
        for ended in select.select(list(handles), [], [], wait_s)[0]:
            self.ended_s[handles.pop(ended)] = time.monotonic()
            os.close(ended)


def _ranks_here() -> set[int]:
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if WORKER in child.cmdline():
                found.add(child.pid)
    return found


def end_with(starter: int, folder: Path) -> None:
    """A thread's work: when the process that started us is gone, nothing of ours is left."""
    while os.getppid() == starter:
        time.sleep(LOOK_S)
    _kill_ranks()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def heed(group: _board.Group, folder: Path) -> None:
    """A thread's work: when ranks of another host have failed, ours need not wait for them."""
    while (cause := next((end for end in group.failures(0.0) if not end.lost), None)) is None:
        time.sleep(LOOK_S * 5)
    _tell(folder, cause)
    _kill_ranks()
    os._exit(1)


def _kill_ranks() -> None:
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()


def _tell(folder: Path, cause: End) -> None:
    write_atomically(folder / "failure.json", msgspec.json.encode(cause))


def launch(spec: dict[str, Any], nodes: Nodes) -> End | None:
    """Start the ranks and wait until all have ended; the end that was the cause, where they were not asked to."""
    folder = Path(spec["folder"])
    if nodes.count > 1 and (interface := _interface(nodes)):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if spec["ranks_per_node"] > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's own value, without a warning among the last lines
    config, command, rest = config_from_args(get_args_parser().parse_args(arguments(spec, nodes)))
    watch = Watch(spec["ranks_per_node"])
    watch.start()
    exits: Mapping[int, tuple[int, int]] = {}
    try:
        elastic_launch(config=config, entrypoint=command)(*rest)
    except ChildFailedError as error:
        exits = {failed.pid: (failed.local_rank, failed.exitcode) for failed in error.failures.values()}
    except Exception as error:  # noqa: BLE001 - the rendezvous, a signal: whatever it was, the driver is told
        return End(rank=None, node=nodes.rank, said=told(error))
    if not exits and not any(folder.glob("end-*.json")):
        return None
    begins = nodes.rank * int(spec["ranks_per_node"])
    return first(gathered(folder, nodes.rank, begins, exits, watch.ended_s))


def main(path: Path) -> int:
    spec = json.loads(path.read_text())
    nodes = Nodes(**spec["nodes"])
    threading.Thread(target=end_with, args=(spec["starter"], path.parent), daemon=True).start()
    os.environ[LAUNCHER] = str(os.getpid())
    group = _board.publish(nodes, spec) if nodes.count > 1 and nodes.rank == 0 else None
    if group:
        threading.Thread(target=heed, args=(group, path.parent), daemon=True).start()
    cause = launch(spec, nodes)
    if group and cause and cause.lost:
        cause = next((end for end in group.failures(OTHERS_S) if not end.lost), cause)
    if cause:
        _tell(path.parent, cause)
    return 1 if cause else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
