"""Our run files: records line by line, each checked before it counts; and samples that were sold twice."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from archbench.cells import Cell, Run, Started, TrackNote, decode
from archbench.reports.load import Problem, Unreadable, read_bytes
from archbench.reports.meaning import (
    MAX_BLOCKS,
    MAX_CASES,
    MAX_CONTENDERS,
    MAX_METRICS,
    check_header,
    check_record,
    readable,
)
from archbench.reports.proofs import Proof

MAX_LINES = 200_000
MAX_BAD_LINES = 100
# What it may cost to follow the numbers of a file's duels, in pairs of blocks: under two seconds, 16,000 short duels.
MAX_WORK = 10_000_000
MAX_TRACKS = 200
DUEL_WORK = 500
LEAST_REPLAY = 5  # fewer blocks of a coarse clock could be equal by chance


@dataclass
class RunFile:
    """One run: its header, the tracks as they were, its cells; and what did not count."""

    run: Run
    name: str = ""  # how problems call it
    tracks: dict[str, TrackNote] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    unfinished: list[Cell] = field(default_factory=list)  # begun, never ended: crashed, where no run knows more
    problems: list[Problem] = field(default_factory=list)
    sha256: str = ""  # of its content
    verified: Proof | None = None


def read_run(path: Path, name: str, machine: str) -> RunFile:
    """Read a run file; ``name`` is how problems call it. Raises Unreadable when it has no usable header."""
    content = read_bytes(path)
    lines = content.split(b"\n")
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
    try:
        check_header(header)
        header = readable(lines[0], header)
        assert isinstance(header, Run)
    except ValueError as error:
        raise Unreadable(str(error)) from error
    found = RunFile(header, name, sha256=hashlib.sha256(content).hexdigest())
    work = 0
    started: dict[tuple[str, str, str], Started] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            record = decode(line)
            if isinstance(record, Cell) and record.duel is not None:
                work += min(len(record.duel.contender_s), MAX_BLOCKS) ** 2 + DUEL_WORK
                if work > MAX_WORK:
                    raise ValueError("too many samples for one file")
            check_record(record)
            record = readable(line, record)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            found.problems.append(Problem(f"{name}:{number}", f"not a record: {error}"))
            if len(found.problems) == MAX_BAD_LINES:
                found.problems.append(Problem(name, f"{MAX_BAD_LINES} lines are no records: the rest was not read"))
                break
            continue
        if isinstance(record, Cell):
            started.pop((record.track, record.case, record.contender), None)
            found.cells.append(record)
        elif isinstance(record, TrackNote):
            found.tracks[record.track] = record
        elif isinstance(record, Started):
            started[record.track, record.case, record.contender] = record
    for mark in started.values():
        found.unfinished.append(
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


def drop_surplus(runs: Sequence[RunFile]) -> Iterator[Problem]:
    """Drop cells that would make a board nobody can render or read: more names than a track can have.

    Names in many files stay before names in few, and those of short files before those of long ones, so that a file
    full of names displaces its own and no others.
    """
    allowed = _allowed(runs)
    for file in runs:
        kept = [cell for cell in file.cells if _named(cell) <= allowed]
        if len(kept) < len(file.cells):
            yield Problem(
                file.name,
                f"{len(file.cells) - len(kept)} cells beyond {MAX_TRACKS} tracks, or {MAX_CONTENDERS} contenders, "
                f"{MAX_CASES} cases or {MAX_METRICS} metrics of a track",
            )
        file.cells[:] = kept
        file.unfinished[:] = [cell for cell in file.unfinished if _named(cell) <= allowed]


def _named(cell: Cell) -> set[tuple[str, str, str]]:
    """The names of a cell that take room on a board: kind, track and name."""
    found = {("tracks", "", cell.track), ("cases", cell.track, cell.case), ("contenders", cell.track, cell.contender)}
    return found | {("metrics", cell.track, name) for name in (*cell.metrics, *cell.series)}


def _allowed(runs: Sequence[RunFile]) -> set[tuple[str, str, str]]:
    most = {"tracks": MAX_TRACKS, "cases": MAX_CASES, "contenders": MAX_CONTENDERS, "metrics": MAX_METRICS}
    files: Counter[tuple[str, str, str]] = Counter()
    shortest: dict[tuple[str, str, str], int] = {}
    for file in runs:
        names = {name for cell in (*file.cells, *file.unfinished) for name in _named(cell)}
        files.update(names)
        for name in names:
            shortest[name] = min(len(names), shortest.get(name, len(names)))
    room: Counter[tuple[str, str]] = Counter()
    allowed = set()
    for name in sorted(files, key=lambda name: (-files[name], shortest[name], name)):
        room[name[:2]] += 1
        if room[name[:2]] <= most[name[0]]:
            allowed.add(name)
    return allowed


def drop_replays(runs: Sequence[RunFile]) -> Iterator[Problem]:
    """Drop cells whose samples an earlier cell holds already: no two measurements are equal to the last digit.

    ``runs`` are in the order of their start, so that the earlier run keeps its numbers.
    """
    seen: dict[bytes, str] = {}
    for file in runs:
        kept = []
        for cell in file.cells:
            if cell.duel is not None and len(cell.duel.contender_s) >= LEAST_REPLAY:
                samples = (cell.duel.contender_s, cell.duel.baseline_s, cell.duel.control_s)
                digest = hashlib.blake2b(msgspec.json.encode(samples), digest_size=16).digest()
                first = seen.setdefault(digest, here := f"{file.run.run} {cell.track}/{cell.contender} {cell.case}")
                if first is not here:
                    yield Problem(file.name, f"{here}: replays the samples of {first}")
                    continue
            kept.append(cell)
        file.cells[:] = kept
