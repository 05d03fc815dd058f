"""What a collection found: the runs it took, and the branches that stopped, with commit and reason.

The quarantine is a folder of one small JSON file per branch that stopped; a file goes when its branch goes on. The
commits themselves stay in the collector's mirror, under ``refs/quarantine/``.

Source: docs/collecting.md says what an owner can do about each
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from archbench.atomic import write_atomically
from archbench.hardware.agent.signed_branch import is_machine
from archbench.names import legible


@dataclass(frozen=True)
class Accepted:
    """A run that joined the results. ``key`` is the fingerprint; empty where the owner vouched for the commit."""

    machine: str
    run: str
    commit: str
    key: str


@dataclass(frozen=True)
class Stopped:
    """A branch that stopped at a commit: nothing from it on was taken. ``behind``: commits that wait after it."""

    branch: str
    commit: str
    reason: str
    behind: int
    since: str  # UTC, ISO 8601: when it was first seen

    def __str__(self) -> str:
        waits = f" ({self.behind} more wait behind it)" if self.behind else ""
        return f"{self.branch} {self.commit[:12]}: {self.reason}{waits}"


@dataclass(frozen=True)
class Collected:
    """One collection. ``unmet`` are commits the owner named that no branch had where it stopped."""

    accepted: tuple[Accepted, ...]
    skipped: tuple[str, ...]
    quarantined: tuple[Stopped, ...]
    unmet: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0: everything new counts; 1: something is quarantined, or a commit the owner named was not met."""
        return 1 if self.quarantined or self.unmet else 0

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, schema 1."""
        return {"schema": 1} | {name: list(held) for name, held in asdict(self).items()}

    def lines(self) -> list[str]:
        """For people: one line for each thing that happened."""
        found = [f"collected {a.machine} run {a.run}" + ("" if a.key else ", not verified") for a in self.accepted]
        found += [f"skipped {commit[:12]}" for commit in self.skipped]
        found += [f"quarantined {stopped}" for stopped in self.quarantined]
        found += [f"no branch is stopped at {commit}" for commit in self.unmet]
        return found or ["nothing new"]


class Quarantine:
    """The folder of branches that stopped."""

    def __init__(self, folder: Path, now: Callable[[], datetime]) -> None:
        self.folder = folder
        self._now = now
        self._held: dict[str, Stopped] = {}

    def put(self, name: str, commit: str, reason: str, behind: int) -> None:
        """A branch stopped. The date stays that of the first time it stopped at this commit."""
        path = self._path(name)
        try:
            before = json.loads(path.read_bytes())
        except (OSError, ValueError):
            before = {}
        since = self._now().isoformat(timespec="seconds")
        if before.get("commit") == commit:
            since = str(before.get("since", since))
        stopped = Stopped(legible(f"machine/{name}"), commit, legible(reason), behind, since)
        self._held[name] = stopped
        write_atomically(path, json.dumps(asdict(stopped), indent=1).encode() + b"\n")

    def settled(self) -> tuple[Stopped, ...]:
        """What stopped in this collection, by branch; the files of those that went on are taken away."""
        current = {self._path(name) for name in self._held}
        for path in self.folder.glob("*.json"):
            if path not in current:
                path.unlink()
        return tuple(self._held[name] for name in sorted(self._held))

    def _path(self, name: str) -> Path:
        usable = name if is_machine(name) else f"odd-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        return self.folder / f"{usable}.json"
