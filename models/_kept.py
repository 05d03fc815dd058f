"""Runs that a track's contenders share: made once on a host, and kept in the user's cache.

Such a run is the same whoever asks for it, so its name follows from all that decides its outcome: what the track says,
the code that trains, the version of torch, the number of threads and the device. One process makes it; another that
wants it waits and reads. ``fit`` goes on from the file where a process was killed. A file that cannot be read is made
again; a cache that cannot be used is a reason not to run here.

Source: the module's own
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from archbench.models import _train_checkpoint, _train_history, _train_recipe, _train_step, train
from archbench.models._data.fingerprint import cache_folder
from archbench.track import Device, Unavailable

LOOP = (train, _train_step, _train_recipe, _train_checkpoint, _train_history)
DAMAGED = (ValueError, KeyError, TypeError)  # of reading a file that is none, or of another layout under a right seal


def name_of(decides: Sequence[Any], code: Sequence[ModuleType], device: Device) -> str:
    """A digest of ``decides`` (values with a ``repr`` that says all), of modules, and of who computes."""
    parts = [*decides, device, torch.__version__, torch.get_num_threads()]
    parts += [inspect.getsource(module) for module in (*LOOP, *code)]
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


@contextmanager
def kept(track: str, name: str) -> Iterator[Path]:
    """The checkpoint of this name in the track's cache, this process's alone within. Waits where another has it.

    Raises Unavailable where the cache can be neither made, read nor written, within the block too.
    """
    folder = None
    try:
        folder = cache_folder(track)
        path = folder / f"{name}.pt"
        with path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path
    except OSError as error:
        place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | os.PathLike) else None
        if place is None or (folder is not None and folder not in place.parents):
            raise  # of something else: the data that is read meanwhile
        raise Unavailable(f"the cache of trained networks cannot be used: {place}: {error.strerror}") from error
