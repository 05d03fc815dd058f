"""Putting a finished folder in the place of another one in one step, where the system can."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import sys
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def swap_folder(staged: Path, target: Path) -> None:
    """Put a finished folder in the place of another one and remove that. Both lie in one folder. Raises OSError.

    On Linux the two exchange names in one step; elsewhere, and on file systems that cannot, there is a moment between
    two renames.
    """
    if not target.exists():
        os.replace(staged, target)
    elif _exchange(staged, target):
        shutil.rmtree(staged)
    else:
        old = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
        os.replace(target, old)
        os.replace(staged, target)
        shutil.rmtree(old)


def _exchange(a: Path, b: Path) -> bool:
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0
