"""Writing files so that a kill or a full disk leaves the old one or the new one, never half of one.

The content is written beside the target, seen to the disk, and renamed; then the folder is, so that the name survives
a power failure too.

Source: Pillai et al. 2014, All File Systems Are Not Created Equal (OSDI)
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, mark: str = "") -> Iterator[Path]:
    """A path beside ``path`` to write a file to; it takes the place of ``path`` when the block ends without an error.

    What a killed writer leaves has another name each time. Where there is only one writer at a time, a ``mark`` gives
    it one name, so that the next writer clears it away. Makes the folders. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name[:100]}.{mark or secrets.token_hex(4)}")
    try:
        yield staged
        with staged.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_atomically(path: Path, content: bytes) -> None:
    """Put a file of this content at ``path``, whole or not at all. Makes the folders. Raises OSError."""
    with replacing(path) as staged:
        staged.write_bytes(content)
