"""pytest-benchmark: what ``pytest --benchmark-json=FILE`` (or ``--benchmark-save``) writes.

A contender is a test function, a case its group and parameters: tests of one group stand in one table. The median has
an interval where the file holds the rounds: with ``--benchmark-json`` always, else with ``--benchmark-save-data``.

Source: https://pytest-benchmark.readthedocs.io/en/latest/usage.html
"""

from __future__ import annotations

from typing import Any

import msgspec

from archbench.cells import Cell, ContenderNote, Metric, Scalar, TrackNote
from archbench.reports.imports.measured import NO_COMMIT, Measured, median_seconds
from archbench.reports.load import Unreadable, read_json
from archbench.reports.meaning import is_commit

TRACK = "pytest_benchmark"
NOTES = (
    "Imported from pytest-benchmark. Times are the median round, with its interval where the file holds six rounds or "
    "more. Nothing in it is paired with a baseline, so nothing is ranked."
)


class Stats(msgspec.Struct, frozen=True):
    median: float
    rounds: int = 1
    data: list[float] = []


class Benchmark(msgspec.Struct, frozen=True):
    name: str
    fullname: str
    stats: Stats
    group: str | None = None
    param: str | None = None
    params: dict[str, Any] | None = None

    @property
    def contender(self) -> str:
        return self.fullname.removesuffix(f"[{self.param}]") if self.param else self.fullname

    @property
    def case(self) -> str:
        return ", ".join(part for part in (self.group, self.param) if part) or "-"

    @property
    def sizes(self) -> dict[str, Scalar]:
        found = self.params or {}
        return {name: v if isinstance(v, (int, float, bool)) else str(v) for name, v in found.items()}

    def latency(self) -> Metric:
        if self.stats.data:
            return median_seconds(self.stats.data)
        return Metric(self.stats.median, "s", n=max(1, self.stats.rounds))


class Commit(msgspec.Struct, frozen=True):
    id: str = ""
    time: str | None = None
    dirty: bool = False


class Cpu(msgspec.Struct, frozen=True):
    brand_raw: str = ""
    count: int = 0


class Machine(msgspec.Struct, frozen=True):
    """``node``, the host's name, is left out: it names a place, not a machine."""

    machine: str = ""
    system: str = ""
    python_version: str = ""
    cpu: Cpu = Cpu()


class File(msgspec.Struct, frozen=True):
    benchmarks: list[Benchmark]
    datetime: str
    machine_info: Machine = Machine()
    commit_info: Commit = Commit()
    version: str = ""


def read(content: bytes) -> Measured:
    """One session. Raises Unreadable, msgspec.ValidationError, ValueError."""
    file = msgspec.convert(read_json(content), File)
    if not file.benchmarks:
        raise Unreadable("no benchmarks in it")
    cells = [
        Cell(
            track=TRACK,
            case=found.case,
            contender=found.contender,
            status="ok",
            baseline="",
            metrics={"latency_s": found.latency()},
        )
        for found in file.benchmarks
    ]
    machine = file.machine_info
    host: dict[str, Scalar] = {"cpu.model": machine.cpu.brand_raw, "cpu.cores": machine.cpu.count}
    host |= {"arch": machine.machine, "system": machine.system}
    versions = {"pytest-benchmark": file.version, "python": machine.python_version}
    known = is_commit(file.commit_info.id)
    return Measured(
        track=TrackNote(
            track=TRACK,
            question="How long does each test function take?",
            version="1",
            baseline="",
            cases={found.case: found.sizes for found in file.benchmarks},
            contenders={found.contender: ContenderNote("", "", "pytest-benchmark") for found in file.benchmarks},
            notes=NOTES,
        ),
        cells=cells,
        started=file.datetime,
        commit=file.commit_info.id if known else NO_COMMIT,
        commit_date=(file.commit_info.time or "") if known else "",
        dirty=file.commit_info.dirty,
        host={name: value for name, value in host.items() if value},
        versions={name: value for name, value in versions.items() if value},
    )
