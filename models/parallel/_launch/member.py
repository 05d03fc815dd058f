"""What a rank does: joins the others, builds its trainer, and answers what the driver asks until it is told to close.

Rank 0 holds the connection. What it is asked goes to the others over a group of its own on gloo, which waits without
using a core or a GPU; the launcher ends this process when another rank ends.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
import resource
from datetime import timedelta
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from archbench.models.parallel import BACKENDS, ParallelCase
from archbench.models.parallel._answers import QUESTIONS
from archbench.models.parallel._launch.rank import Rank
from archbench.models.parallel._trainer import World
from archbench.track import Unavailable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
WAITING = timedelta(days=1)  # between two questions nobody is late


def join(spec: dict[str, Any]) -> Rank:
    """This process as a rank among the others, with its trainer built."""
    case = ParallelCase(**spec["case"])
    number, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    with (Path(spec["folder"]) / "notes").open("r+b") as file:
        notes = mmap.mmap(file.fileno(), 0)
    device = torch.device("cuda", local) if BACKENDS[case.backend] == "cuda" else torch.device("cpu")
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if device.type == "cuda":
        if torch.cuda.device_count() < here:
            raise Unavailable(f"needs {here} GPUs for torch, here: {torch.cuda.device_count()}")
        torch.cuda.set_device(device)
    if spec["cap_bytes"]:
        cap(device, spec["cap_bytes"])
    keep_freed_memory()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))
    distributed.init_process_group(case.backend)
    control = distributed.new_group(backend="gloo", timeout=WAITING)
    module = importlib.import_module(spec["module"])
    if not callable(getattr(module, "trainer", None)):
        raise TypeError(f"{spec['module']} defines no trainer: a class or function that takes a World")
    return Rank(World(case, number, size, device), module.trainer(World(case, number, size, device)), control, notes)


def cap(device: torch.device, size: int) -> None:
    """How much a rank may take: on a CPU all it writes to, on a GPU what torch allocates."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, size / torch.cuda.get_device_properties(device).total_memory), device
        )
    else:
        # The hard limit stays: who has met the soft one needs a little more to say so.
        resource.setrlimit(resource.RLIMIT_DATA, (size, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def keep_freed_memory() -> None:
    """What an update gave back stays with the process for the next one, as on a GPU.

    glibc gives the end of its heap back to the system and large pieces at once, and takes them again page by page: up
    to 40,000 page faults a call, which is 3 to 4 % of its time and, by luck of the heap, nothing in another rank's.
    Whoever starts ranks with an allocator set by the environment keeps that.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, (2 << 30) - 1)


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


def take_part(spec: dict[str, Any]) -> None:
    """From the first word to the last."""
    rank = join(spec)
    key = bytes.fromhex(spec["key"])
    serve(rank, Client(spec["driver"], "AF_UNIX", authkey=key) if rank.world.rank == 0 else None)
    distributed.destroy_process_group()
