"""Taking a verified delivery into a results folder: tried on a copy first, then merged, with its proof beside it.

The copy is made of links, so it costs names and no content. What the reader of results has against the copy with the
run and not against the one without it, it has against the run: a broken record, a run of tomorrow, or samples that are
another machine's. A run never changes what is there: its run files are new, and of asv's descriptions of benchmarks,
which all machines share, only names nobody described are taken.

Source: docs/collecting.md says what a proof proves
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from archbench.atomic import write_atomically
from archbench.hardware.agent.signed_branch import BENCHMARKS, CELLS, Delivery
from archbench.hardware.agent.signed_commit import Refused

# Joins results folders into another one, and writes files whole or not at all: the copy shares its files with the
# results. Raises ValueError where two files cannot both be kept.
Merge = Callable[[Sequence[Path], Path], object]
# What in a results folder does not count: path and reason of each. Raises ValueError where there is nothing at all.
Validate = Callable[[Path], Iterable[tuple[str, str]]]
PROOFS = "verified.jsonl"


class Results:
    """A results folder that deliveries are taken into."""

    def __init__(
        self, folder: Path, state: Path, merge: Merge, validate: Validate, now: Callable[[], datetime]
    ) -> None:
        self.folder = folder
        self._staged = state / "staged"
        self._trial = state / "trial"
        self._merge, self._validate, self._now = merge, validate, now
        self._before: set[tuple[str, str]] | None = None  # what is against the trial as it is; None: there is none yet

    def take(self, deliveries: Sequence[Delivery]) -> None:
        """Merge deliveries, all or none. Raises Refused where one does not fit the results, OSError."""
        shutil.rmtree(self._staged, ignore_errors=True)
        staged = [self._stage(delivery, self._staged / str(i)) for i, delivery in enumerate(deliveries)]
        if self._before is None:
            self._copy()
            self._before = self._against(self._trial)
        before, self._before = self._before, None  # a trial that fails is of no use any more
        try:
            self._merge(staged, self._trial)
            after = self._against(self._trial)
            found = sorted((after - before).union(*map(self._against, staged)))
            if found:
                more = f", and {len(found) - 1} more" if len(found) > 1 else ""
                raise Refused(f"{found[0][0]}: {found[0][1]}{more}")
            self._merge(staged, self.folder)
        except ValueError as error:
            raise Refused(f"cannot be merged: {error}") from error
        self._before = after

    def tidy(self) -> None:
        """Remove the copy."""
        for folder in (self._staged, self._trial):
            shutil.rmtree(folder, ignore_errors=True)

    def proved(self, machine: str) -> set[str]:
        """The commits of a machine whose proofs lie in the results."""
        found = set()
        for line in _lines(self.folder / machine / PROOFS):
            if isinstance(line, dict) and isinstance(line.get("commit"), str):
                found.add(line["commit"])
        return found

    def _stage(self, delivery: Delivery, staged: Path) -> Path:
        """A delivery as a results folder of its own. Raises Refused where it would overwrite a run."""
        for name, content in delivery.files.items():
            place = self.folder / name
            if f"/{CELLS}/" in name and place.exists() and place.read_bytes() != content:
                raise Refused(f"{name} would overwrite another run of that name in the results")
            if name != BENCHMARKS:
                write_atomically(staged / name, content)
        described = _object(self.folder / BENCHMARKS)
        new = {k: v for k, v in json.loads(delivery.files.get(BENCHMARKS, b"{}")).items() if k not in described}
        if new:
            write_atomically(staged / BENCHMARKS, json.dumps(new, sort_keys=True).encode() + b"\n")
        if delivery.key:
            proofs = [
                {
                    "record": "proof",
                    "file": name.removeprefix(f"{delivery.machine}/"),
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "commit": delivery.commit,
                    "signer": delivery.machine,
                    "key": delivery.key,
                    "collected": self._now().isoformat(timespec="seconds"),
                }
                for name, content in sorted(delivery.files.items())
                if f"/{CELLS}/" in name
            ]
            lines = "".join(json.dumps(proof, separators=(",", ":")) + "\n" for proof in proofs)
            write_atomically(staged / delivery.machine / PROOFS, lines.encode())
        return staged

    def _copy(self) -> None:
        shutil.rmtree(self._trial, ignore_errors=True)
        if self.folder.is_dir():
            shutil.copytree(self.folder, self._trial, symlinks=True, copy_function=_link)
        self._trial.mkdir(parents=True, exist_ok=True)

    def _against(self, folder: Path) -> set[tuple[str, str]]:
        try:
            return set(self._validate(folder))
        except ValueError:  # there is nothing in it yet
            return set()


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target, follow_symlinks=False)
    return target


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[object]:
    try:
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError):
        return []
