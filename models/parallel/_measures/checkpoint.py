"""A checkpoint as PyTorch makes it of a training in several processes: how long, how large, and whether it restores.

Parameters and optimizer state go through ``torch.distributed.checkpoint``: each rank writes a file of what it alone
holds, copies are written once, and every file is synced to its disk before the save counts as done. Restored into ranks
that have begun again, the same numbers must be there.

Source: https://docs.pytorch.org/docs/stable/distributed.checkpoint.html
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

from archbench.models._memory import state_of
from archbench.models.parallel._launch.rank import Rank
from archbench.models.parallel._trainer import Trainer
from archbench.models.parallel._ways.sharding import local

IN_MEMORY = ("tmpfs", "ramfs")


def saved(rank: Rank, folder: str) -> tuple[float, bool]:
    """Seconds of a save into an empty folder all ranks see, and whether all was there again after a restore."""
    rank.together()
    began = time.monotonic()
    checkpoint.save(contents(rank.trainer), storage_writer=FileSystemWriter(folder), process_group=rank.control)
    took = time.monotonic() - began
    before = _content(rank)
    rank.trainer.reset()
    checkpoint.load(contents(rank.trainer), storage_reader=FileSystemReader(folder), process_group=rank.control)
    told = rank.gathered((took, _content(rank) == before))
    return max((seconds for seconds, _ in told), default=0.0), all(same for _, same in told)


def contents(trainer: Trainer) -> dict[str, Any]:
    """The tensors of a rank's parameters and of their optimizer state, by their names in the whole model."""
    found: dict[str, Any] = {}
    for parameter, shard in zip(trainer.model.parameters(), trainer.shards(), strict=True):
        found[f"model.{shard.name}"] = parameter.detach()
        for key, value in trainer.optimizer.state[parameter].items():
            found[f"optimizer.{shard.name}.{key}"] = value
    return found


def _content(rank: Rank) -> str:
    """A hash of the bits of a rank's parameters and optimizer state."""
    found = hashlib.sha256()
    for tensor in (*rank.trainer.model.parameters(), *state_of(rank.trainer.optimizer)):
        found.update(local(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def folder_on_disk() -> str | None:
    """Where temporary files reach a disk; None where all of them would stay in memory."""
    kinds = {entry.mountpoint: entry.fstype for entry in psutil.disk_partitions(all=True)}
    for folder in (tempfile.gettempdir(), "/var/tmp", str(Path.home())):
        if os.access(folder, os.W_OK):
            path = Path(folder).resolve()
            mounted = next((str(above) for above in (path, *path.parents) if str(above) in kinds), "")
            if kinds.get(mounted) not in IN_MEMORY:
                return folder
    return None
