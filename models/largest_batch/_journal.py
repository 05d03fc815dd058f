"""Trials of a search that is still going on, on disk: one that was cut off goes on where it stopped.

Each finished trial is a line, seen to the disk. The file's name is a hash of all that a trial depends on, and of the
run it belongs to: a run that is begun anew measures anew. The file is removed when the last search of its cell has
ended; one whose run never went on, after a day.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from archbench.models.largest_batch._trials import Trial

RUN_FILE = "ARCHBENCH_RUN_FILE"  # of the run that measures; absent where none does
FORGOTTEN_S = 86_400.0


class _Line(msgspec.Struct, frozen=True):
    seed: int
    trial: Trial


def folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "archbench" / "searches"


def sources(*folders: Path) -> str:
    """A hash of the Python files in some folders."""
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            found.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


class Journal:
    """The trials of one cell. ``key``: what they depend on."""

    def __init__(self, key: Any) -> None:
        named = repr((os.environ.get(RUN_FILE, ""), key)).encode()
        self.path = folder() / f"{hashlib.sha256(named).hexdigest()[:32]}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path in self.path.parent.glob("*.jsonl"):
            if time.time() - path.stat().st_mtime > FORGOTTEN_S:
                path.unlink(missing_ok=True)
        self._known = {(line.seed, line.trial.batch): line.trial for line in self._read()}

    def known(self, seed: int, batch: int) -> Trial | None:
        return self._known.get((seed, batch))

    def add(self, seed: int, trial: Trial) -> None:
        self._known[seed, trial.batch] = trial
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(_Line(seed, trial)) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _read(self) -> list[_Line]:
        """The whole lines; half of one, which a kill left, is cut off."""
        if not self.path.exists():
            return []
        found, end = [], 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                found.append(msgspec.json.decode(line, type=_Line))
            except msgspec.DecodeError:
                break
            if not line.endswith(b"\n"):
                found.pop()
                break
            end += len(line)
        os.truncate(self.path, end)
        return found
