"""Noticing that a folder changed, by looking: no dependency, and it works on every file system."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path


def changes(folder: Path, stop: threading.Event, pause_s: float = 1.0) -> Iterator[None]:
    """Yields now, and again whenever a file below ``folder`` came, went or changed, until ``stop`` is set."""
    before = None
    while not stop.is_set():
        now = fingerprint(folder)
        if now != before:
            before = now
            yield
        stop.wait(pause_s)


def fingerprint(folder: Path) -> bytes:
    """A digest of the names, sizes and times of everything below a folder. Links are not followed."""
    found = hashlib.blake2b(digest_size=16)
    pending = [os.fspath(folder)]
    while pending:
        try:
            entries = sorted(os.scandir(pending.pop()), key=lambda entry: entry.name)
        except OSError:  # it went between two looks, or is not ours to read
            continue
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            found.update(f"{entry.path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
    return found.digest()
