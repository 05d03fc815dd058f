"""Our run files: records line by line, each checked before it counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from archbench.cells import Cell, Run, Started, TrackNote, decode
from archbench.names import is_safe_name
from archbench.reports.load import Problem, Unreadable, read_bytes

MAX_LINES = 200_000
POSITIVE = ("latency_s", "slowdown")


@dataclass
class RunFile:
    """One run: its header, the tracks as they were, its cells; and what did not count."""

    run: Run
    tracks: dict[str, TrackNote] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_run(path: Path, name: str, machine: str) -> RunFile:
    """Read a run file; ``name`` is how problems call it. Raises Unreadable when it has no usable header."""
    lines = read_bytes(path).split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    if len(lines) > MAX_LINES:
        raise Unreadable(f"{len(lines)} lines, more than {MAX_LINES}")
    if not lines:
        raise Unreadable("empty")
    try:
        header = decode(lines[0])
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unreadable(f"line 1 is no run header: {error}") from error
    if not isinstance(header, Run):
        raise Unreadable("line 1 is no run header")
    if header.machine != machine:
        raise Unreadable(f"is of machine {header.machine[:60]!r}, not of {machine!r}")
    if not header.commit.isalnum() or len(header.commit) > 64:
        raise Unreadable("has no usable commit")
    found = RunFile(header)
    started: dict[tuple[str, str, str], Started] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            record = decode(line)
            if isinstance(record, Cell):
                check_cell(record)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            found.problems.append(Problem(f"{name}:{number}", f"not a record: {error}"))
            continue
        if isinstance(record, Cell):
            started.pop((record.track, record.case, record.contender), None)
            found.cells.append(record)
        elif isinstance(record, TrackNote):
            if is_safe_name(record.track):
                found.tracks[record.track] = record
            else:
                found.problems.append(Problem(f"{name}:{number}", f"{record.track[:60]!r} is not a usable track name"))
        elif isinstance(record, Started):
            started[record.track, record.case, record.contender] = record
    for mark in started.values():
        if is_safe_name(mark.track):
            found.cells.append(
                Cell(
                    track=mark.track,
                    case=mark.case,
                    contender=mark.contender,
                    baseline=mark.baseline,
                    status="crashed",
                    reason="the process ended without a result",
                )
            )
    return found


def check_cell(cell: Cell) -> None:
    """What a schema cannot say. Raises ValueError."""
    if not is_safe_name(cell.track):
        raise ValueError(f"{cell.track[:60]!r} is not a usable track name")
    if cell.status != "ok" and cell.metrics:
        raise ValueError(f"status {cell.status} with numbers: a number needs a right answer")
    if cell.status == "ok" and not cell.metrics:
        raise ValueError("status ok without numbers")
    metrics = dict(cell.metrics)
    if cell.control is not None:
        metrics["control"] = cell.control
    for name, metric in metrics.items():
        ends = metric.ci or (metric.value, metric.value)
        if not all(math.isfinite(x) for x in (metric.value, *ends)):
            raise ValueError(f"{name} is not finite")
        if ends[0] > ends[1]:
            raise ValueError(f"{name} has a reversed interval {ends}")
        if name in (*POSITIVE, "control") and (metric.value <= 0 or ends[0] <= 0):
            raise ValueError(f"{name} is {metric.value:g}: it must be positive")
        if metric.value < 0 and name in ("peak_bytes", "energy_j", "error"):
            raise ValueError(f"{name} is {metric.value:g}: it cannot be negative")
    if cell.limit_fraction is not None and not 0 <= cell.limit_fraction < 10:
        raise ValueError(f"limit_fraction is {cell.limit_fraction:g}")
