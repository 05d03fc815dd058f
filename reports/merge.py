"""Merging results folders: the union, computed file by file.

Every kind of file has a join that is commutative, associative and idempotent, so any order of merges, repeated as often
as you like, ends in the same folder:

- a run file is immutable: it is copied by its name. Of one that was still growing the longer is taken. Two different
  files of one name are refused by name, before anything is written;
- asv's ``<commit>-<env>.json`` are joined benchmark by benchmark: the newer ``started_at`` counts, and of two of the same
  time the one whose JSON sorts last;
- ``benchmarks.json`` is the union of its benchmarks, ``machine.json`` the one that sorts last where two differ.

What the reader would not read is left where it is and named. Nothing is deleted; a file that is the join already is
not touched; every write is whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from archbench.names import legible
from archbench.reports.asv_tree import as_version_2, parse
from archbench.reports.atomic import write_atomically
from archbench.reports.load import NoResults, Problem, Unreadable, finite, read_bytes, read_json, read_object, survey
from archbench.reports.meaning import check_asv
from archbench.reports.run_files import read_run

Join = Callable[[bytes, bytes], bytes]
ROW = ("result", "params")  # asv's first columns, in its order


class Conflict(ValueError):
    """Files that cannot both be kept; the message names them."""


@dataclass
class Merged:
    """What a merge did: paths relative to the target, and what was left out."""

    written: list[str] = field(default_factory=list)
    unchanged: int = 0
    problems: list[Problem] = field(default_factory=list)


def merge(folders: Sequence[Path], into: Path) -> Merged:
    """Join ``folders`` into a results folder, which need not exist.

    Raises NoResults for a folder that is none, Conflict, OSError. Nothing is written after a NoResults or a Conflict.
    """
    done = Merged()
    found: dict[str, list[tuple[Path, bytes]]] = {}
    for folder in (*([into] if into.is_dir() else []), *folders):
        for name, content in _contents(folder, done.problems).items():
            found.setdefault(name, []).append((folder, content))
    conflicts, joined = [], {}
    for name, versions in sorted(found.items()):
        target = into / name
        present = target.is_symlink() or target.exists()
        if present and versions[0][0] != into:
            conflicts.append(f"{name} in {into} is not readable, and another one is to go there")
            continue
        try:
            content = reduce(_join_for(name), (content for _, content in versions))
        except Conflict:
            conflicts.append(f"{name} differs between {' and '.join(str(folder) for folder, _ in versions)}")
            continue
        if present and content == versions[0][1]:
            done.unchanged += 1
        else:
            joined[name] = content
    if conflicts:
        raise Conflict("nothing was merged: " + "; ".join(map(legible, conflicts)))
    for name, content in joined.items():
        write_atomically(into / name, content)
        done.written.append(name)
    return done


def _contents(folder: Path, problems: list[Problem]) -> dict[str, bytes]:
    """The readable files of a results folder by their relative path."""
    files = survey(folder)
    found: dict[str, bytes] = {}

    def keep(path: Path, check: Callable[[str], object]) -> None:
        name = path.relative_to(folder).as_posix()
        try:
            check(name)
            found[name] = read_bytes(path)
        except Unreadable as error:
            problems.append(Problem(f"{folder}/{name}", str(error)))

    problems += [Problem(f"{folder}/{problem.path}", problem.reason) for problem in files.problems]
    for machine, path in files.runs:
        keep(path, lambda name, p=path, m=machine: read_run(p, name, m))  # type: ignore[misc]
    for machine, path in files.asv:
        keep(path, lambda _, p=path, m=machine: parse(read_object(p, check_asv), m))  # type: ignore[misc]
    for machine in files.machines:
        keep(folder / machine / "machine.json", lambda _: None)
    if files.benchmarks:
        keep(folder / "benchmarks.json", lambda _: read_object(folder / "benchmarks.json"))
    return found


def _join_for(name: str) -> Join:
    if name.endswith(".jsonl"):
        return _longer
    if name.endswith("machine.json"):
        return lambda a, b: max(a, b, key=lambda content: (_canonical(read_json(content)), content))
    by = _join_benchmarks if name == "benchmarks.json" else _join_results
    return lambda a, b: a if a == b else _canonical(by(read_json(a), read_json(b))).encode() + b"\n"


def _longer(a: bytes, b: bytes) -> bytes:
    """Run files only grow: one that starts like the other is the same run, later."""
    short, long = sorted((a, b), key=len)
    if not long.startswith(short):
        raise Conflict
    return long


def _canonical(value: Any) -> str:
    """One text for equal data; asv's bare NaN is kept."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _last(a: Any, b: Any) -> Any:
    return max(a, b, key=_canonical)


def _union(a: Mapping[str, Any], b: Mapping[str, Any], pick: Callable[[Any, Any], Any]) -> dict[str, Any]:
    return {**a, **b, **{key: pick(a[key], b[key]) for key in a.keys() & b.keys()}}


def _join_benchmarks(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return _union(a, b, _last)


def _join_results(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    a, b = as_version_2(a), as_version_2(b)
    rows = _union(_rows(a), _rows(b), _newer)
    names = sorted({name for row in rows.values() for name in row} - {*ROW})
    columns = [*ROW, *names]
    joined = _union(a, b, _last)
    durations = [held.get("durations") for held in (a, b)]
    if all(isinstance(held, dict) for held in durations):
        joined["durations"] = _union(*durations, _last)  # type: ignore[arg-type]
    joined["result_columns"] = columns
    joined["results"] = {name: [row.get(column) for column in columns] for name, row in rows.items()}
    return joined


def _rows(held: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows by benchmark, values by column; a column that holds nothing is not there."""
    return {
        name: {column: value for column, value in zip(held["result_columns"], row, strict=False) if value is not None}
        for name, row in held["results"].items()
    }


def _newer(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return max(a, b, key=lambda row: (finite(row.get("started_at")) or 0.0, _canonical(row)))
