"""A rank: joins the others, builds its trainer, and answers what the driver asks until the driver is gone.

Rank 0 holds the connection. What it is asked goes to the others over a group of its own on gloo, which waits without
using a core or a GPU; the launcher ends this process when another rank ends.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import resource
import sys
from datetime import timedelta
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import record

from archbench.models.parallel import BACKENDS, ParallelCase
from archbench.models.parallel._answers import QUESTIONS, Rank
from archbench.models.parallel._trainer import World

WAITING = timedelta(days=1)  # between two questions nobody is late


def join(spec: dict[str, Any]) -> Rank:
    """This process as a rank among the others, with its trainer built."""
    case = ParallelCase(**spec["case"])
    number, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    folder = Path(spec["folder"])
    (folder / f"pid-{os.getpid()}").touch()
    with (folder / "notes").open("r+b") as file:
        notes = mmap.mmap(file.fileno(), 0)
    if spec["cap_bytes"]:
        resource.setrlimit(resource.RLIMIT_DATA, (spec["cap_bytes"], spec["cap_bytes"]))
    device = torch.device("cuda", local) if BACKENDS[case.backend] == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    distributed.init_process_group(case.backend)
    control = distributed.new_group(backend="gloo", timeout=WAITING)
    world = World(case, number, size, device)
    return Rank(world, importlib.import_module(spec["module"]).trainer(world), control, notes)


def serve(rank: Rank, driver: Connection | None) -> None:
    """Answer until told to close; ``driver`` is rank 0's."""
    while True:
        asked: list[Any] = [driver.recv() if driver else None]
        distributed.broadcast_object_list(asked, src=0, group=rank.control)
        what, arguments = asked[0]
        if what == "close":
            return
        rank.begin_call()
        answer = QUESTIONS[what](rank, *arguments)
        if driver:
            driver.send(answer)


@record
def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    try:
        rank = join(spec)
        key = bytes.fromhex(spec["key"])
        serve(rank, Client(f"{spec['folder']}/driver", "AF_UNIX", authkey=key) if rank.world.rank == 0 else None)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


if __name__ == "__main__":
    main()
