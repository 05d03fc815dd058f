"""What a training run needs to be stopped anywhere and go on: random states, and a file that is whole or absent.

A checkpoint is serialised in memory, written beside its final name, flushed to the disk and renamed; the folder is
flushed too, so that the name survives a power failure. A process killed at any instant leaves the previous checkpoint
or the new one. Serialising into memory costs the size of the checkpoint once, and buys that a full disk is an
``OSError`` of Python and not an abort inside torch's C++ writer. A digest follows the content, which ``torch.load``
ignores and ``read`` insists on.

Source: Pillai et al. 2014, All File Systems Are Not Created Equal (OSDI)
"""

from __future__ import annotations

import errno
import hashlib
import io
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archbench.atomic import replacing

# No space, no quota, a limit on file sizes: training goes on without the checkpoint. Anything else is a mistake.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
SEAL_BYTES = 16  # at the end of the file: torch reads half of all flipped bits as other weights without a word


def derived(seed: int, purpose: str) -> int:
    """A seed of 63 bits for one purpose, so that no two purposes draw the same numbers."""
    digest = hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def random_states() -> dict[str, Any]:
    """The generators of Python, numpy and torch (and of CUDA where it is in use), in types ``torch.load`` trusts."""
    algorithm, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (algorithm, [int(key) for key in keys], *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    algorithm, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Everything drawn inside follows from ``seed``; the generators are afterwards as they were before."""
    before = random_states()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_states(before)


def digest_of(tensors: Iterable[Tensor]) -> str:
    """Digest of shapes, dtypes and contents, wherever the tensors lie."""
    total = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        total.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def write(path: Path, state: dict[str, Any]) -> None:
    """Replace ``path`` by ``state``, or leave it as it was and raise OSError. One writer per path."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with replacing(path, "tmp") as staged, staged.open("wb") as file:
        file.write(buffer.getbuffer())
        file.write(_seal(buffer.getbuffer()))


def _seal(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=SEAL_BYTES, person=b"archbench run").digest()


def read(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The state at ``path``, tensors on the CPU. Raises ValueError where it is none, or of another identity."""
    content = path.read_bytes()
    if _seal(content[:-SEAL_BYTES]) != content[-SEAL_BYTES:]:
        raise ValueError(f"{path} is no checkpoint of a training run, or damaged: delete it to start afresh")
    state = torch.load(io.BytesIO(content[:-SEAL_BYTES]), map_location="cpu", weights_only=True)
    found = state["identity"]
    differs = [
        f"{name}: {found.get(name)!r} there, {identity.get(name)!r} here"
        for name in sorted(found.keys() | identity.keys())
        if found.get(name) != identity.get(name)
    ]
    if differs:
        raise ValueError(
            f"{path} was written by another training run ({'; '.join(differs)}): "
            "name another file, or delete it to start afresh"
        )
    return dict(state)
