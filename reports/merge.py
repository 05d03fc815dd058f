"""Merging results folders: the union, computed file by file.

Every kind of file has a join that is commutative, associative and idempotent, so any order of merges, repeated as often
as you like, ends in the same folder:

- a run file is immutable: it is copied by its name. Of one that was still growing the longer is taken. Two different
  files of one name are refused by name, before anything is written;
- asv's ``<commit>-<env>.json`` are joined benchmark by benchmark: the newer ``started_at`` counts, and at the same time
  the one whose JSON sorts last;
- ``verified.jsonl`` is the union of its proofs;
- ``benchmarks.json`` is the union of its benchmarks, ``machine.json`` the one that sorts last where two differ.

What the reader would not read is left where it is and named. Nothing is deleted; a file that is the join already is
not touched; every write is whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any

from archbench.atomic import write_atomically
from archbench.names import legible
from archbench.reports.asv_tree import as_version_2, parse
from archbench.reports.load import PROOFS, Problem, Unreadable, finite, read_bytes, read_json, read_object, survey
from archbench.reports.meaning import check_asv
from archbench.reports.proofs import joined as join_proofs
from archbench.reports.proofs import read_proofs
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
    found: dict[str, list[Path]] = {}
    for folder in (*([into] if into.is_dir() else []), *folders):
        for path in _readable(folder, done.problems):
            versions = found.setdefault(path.relative_to(folder).as_posix(), [])
            if path not in versions:
                versions.append(path)
    conflicts = []
    for name, versions in sorted(found.items()):
        if os.path.lexists(into / name) and versions[0] != into / name:
            conflicts.append(f"{into / name} is not readable, and {versions[0]} is to go there")
        elif len(versions) > 1:
            try:
                _joined(name, versions)
            except Conflict as conflict:
                conflicts.append(f"{' and '.join(map(str, versions))} {conflict}")
    if conflicts:
        raise Conflict("nothing was merged: " + "; ".join(map(legible, conflicts)))
    for name, versions in sorted(found.items()):
        target = into / name
        content = None if versions == [target] else _joined(name, versions)
        if content is None or (versions[0] == target and content == read_bytes(target)):
            done.unchanged += 1
        else:
            write_atomically(target, content)
            done.written.append(name)
    return done


def _readable(folder: Path, problems: list[Problem]) -> Iterator[Path]:
    """The files of a results folder that the reader reads; the others become problems."""
    files = survey(folder)
    problems += [Problem(f"{folder}/{problem.path}", problem.reason) for problem in files.problems]
    checks: dict[Path, Callable[[], object]] = {}
    for machine, path in files.runs:
        checks[path] = partial(read_run, path, path.name, machine)
    for machine, path in files.asv:
        checks[path] = partial(_read_asv, path, machine)
    for machine, path in files.proofs:
        checks[path] = partial(read_proofs, path, machine)
    homes = {folder / machine for machine in files.machines} | {path.parent for _, path in files.asv}
    for path in (*(home / "machine.json" for home in homes), folder / "benchmarks.json"):
        if path.is_file() and not path.is_symlink():
            checks[path] = partial(read_object, path)
    for path, check in sorted(checks.items()):
        try:
            check()
        except Unreadable as error:
            problems.append(Problem(str(path), str(error)))
        else:
            yield path


def _read_asv(path: Path, machine: str) -> None:
    parse(read_object(path, check_asv), machine)


def _joined(name: str, versions: Sequence[Path]) -> bytes:
    return reduce(_join_for(name), map(read_bytes, versions))


def _join_for(name: str) -> Join:
    if name.endswith(f"/{PROOFS}"):
        return lambda a, b: a if a == b else join_proofs(a, b)
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
        raise Conflict("are two different runs of one name")
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
    if any(a[key] != b[key] for key in ("commit_hash", "env_name")):
        raise Conflict("are of two commits or environments")
    rows = _union(_rows(a), _rows(b), _newer)
    names = sorted({name for row in rows.values() for name in row} - {*ROW})
    columns = [*ROW, *names]
    joined = _union(a, b, _last)
    one, other = a.get("durations"), b.get("durations")
    if isinstance(one, dict) and isinstance(other, dict):
        joined["durations"] = _union(one, other, _last)
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
