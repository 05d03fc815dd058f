"""The working folder of one commit: the run while it lasts, its results when it is whole, and what is left of one.

``archbench run`` works in ``run`` and goes on there after a cut; it removes that folder when ``results`` holds
everything. So there are no marks: the folders themselves say how far a commit has come.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from archbench.atomic import write_atomically
from archbench.cells import CELLS_DIR, Cell, Record, Run, decode


def header_of(content: bytes) -> Run:
    """The header of a run file. Raises ValueError."""
    try:
        header = decode(content.partition(b"\n")[0])
    except msgspec.DecodeError as error:
        raise ValueError(f"no run header: {error}") from error
    if not isinstance(header, Run):
        raise ValueError("no run header")
    return header


@dataclass(frozen=True)
class RunFolder:
    """``work/<commit>`` of one machine."""

    top: Path
    machine: str

    @property
    def run(self) -> Path:
        """Where the run works; there only while it is not whole."""
        return self.top / "run"

    @property
    def results(self) -> Path:
        return self.top / "results"

    @property
    def log(self) -> Path:
        return self.top / "output.log"

    def cells(self) -> int:
        """Cells that are finished so far."""
        return _finished(_records(self.run / "cells.jsonl"))

    def measured(self, run: str) -> int:
        """Cells of a run that is whole."""
        return _finished(_records(self._file(run)))

    def whole(self) -> str | None:
        """The run whose results are all there, or None."""
        files = sorted((self.results / self.machine / CELLS_DIR).glob("*.jsonl"))
        return files[0].stem if files and not self.run.exists() else None

    def salvage(self) -> str | None:
        """Make results of what an unfinished run measured: the name of the run, or None where it measured nothing.

        A cell that was begun and not ended stays as a mark, which readers show as crashed: something took it down.
        """
        file = self.run / "cells.jsonl"
        records = _records(file)
        if not _finished(records) or not isinstance(records[0], Run):
            return None
        lines = file.read_bytes().split(b"\n")[: len(records)]
        write_atomically(self._file(records[0].run), b"".join(line + b"\n" for line in lines))
        return records[0].run

    def remove(self) -> None:
        shutil.rmtree(self.top, ignore_errors=True)

    def _file(self, run: str) -> Path:
        return self.results / self.machine / CELLS_DIR / f"{run}.jsonl"


def _finished(records: list[Record]) -> int:
    return sum(isinstance(record, Cell) for record in records)


def _records(file: Path) -> list[Record]:
    """The records of a run file, up to what a loss of power left at its end; none where there is no file."""
    try:
        lines = file.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            records.append(decode(line))
        except msgspec.DecodeError:
            break
    return records
