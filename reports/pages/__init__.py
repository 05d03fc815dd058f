"""The files of a board: a module per page kind, an ``Output`` per file with the digest of what it is made from.

Each module has ``outputs(board)``, which lists its files. An output is only made when its key changed since the last
render; a page kind therefore puts into ``key`` all that its file depends on, code aside (``site.py`` adds that).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

import msgspec

from archbench.reports.row import Row
from archbench.reports.rows import Results
from archbench.reports.views import Standing, standings


@dataclass(frozen=True)
class Output:
    """One file of the board: its path in the site, the digest of its inputs, and how it is made."""

    path: str
    key: str
    make: Callable[[], bytes]


@dataclass
class Board:
    """What all pages are made from."""

    results: Results
    here: str | None = None  # the machine the board is rendered on, where it has results
    before: Mapping[str, Any] = field(default_factory=dict)  # what the last render remembered; see ``changes``
    address: str = ""  # where the board will be published, for the feed; empty: unknown
    _standings: dict[tuple[str, str, str], list[Standing]] = field(default_factory=dict, repr=False)

    @cached_property
    def by_track_and_machine(self) -> Mapping[tuple[str, str], Sequence[Row]]:
        found: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in self.results.rows:
            found[row.track, row.machine].append(row)
        return dict(sorted(found.items()))

    @cached_property
    def by_track(self) -> Mapping[str, list[Row]]:
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.results.rows:
            found[row.track].append(row)
        return dict(sorted(found.items()))

    def standings(self, track: str, machine: str, commit: str) -> list[Standing]:
        """Contenders of a track over all cases on a machine at a commit; several pages ask for the same."""
        key = (track, machine, commit)
        if key not in self._standings:
            rows = [row for row in self.by_track_and_machine[track, machine] if row.commit == commit]
            self._standings[key] = standings(rows)
        return self._standings[key]

    @cached_property
    def tracks(self) -> list[str]:
        return sorted({track for track, _ in self.by_track_and_machine})

    @cached_property
    def machines(self) -> list[str]:
        return sorted(set(self.results.machines) | {row.machine for row in self.results.rows})


def digest(*parts: object) -> str:
    """A digest of plain data, structs and dataclasses; equal data gives equal digests in every process."""
    return hashlib.blake2b(msgspec.json.encode(parts, order="deterministic"), digest_size=16).hexdigest()


def kinds() -> tuple[ModuleType, ...]:
    """The page kinds, in a fixed order; those that tell what could not be shown come last."""
    from archbench.reports.pages import (
        benchmark,
        card,
        changes,
        compare,
        contender,
        explore,
        history,
        index,
        machine,
        method,
        status,
        track,
    )

    return (track, contender, compare, history, machine, benchmark, changes, explore, card, method, index, status)
