"""asv's files around a private run: what it is given to start from, and how what it leaves joins the results.

asv writes its files in place, forgets benchmarks a partial run did not select, names the environment after the
interpreter's path, and stores null, its word for "failed", for every combination of parameters it was not asked for
once a list of parameters has grown. None of that reaches the results.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from archbench.cells import CELLS_DIR, Cell, Run, decode
from archbench.discovery import track_modules
from archbench.harness.configuration import settings
from archbench.harness.session import CONFIGURATION, existing_name

_OUR_SUITE = re.compile(r"(?P<track>\w+)\.\w+\.track_\w+")

Key = tuple[str, str, str]  # track, case, contender


def read(file: Path) -> tuple[list[Cell], Run | None]:
    """Cells and header of a run file so far; a line still being written is left for later."""
    cells: list[Cell] = []
    header: Run | None = None
    if not file.exists():
        return cells, header
    for line in file.read_bytes().split(b"\n")[:-1]:
        record = decode(line)
        if isinstance(record, Cell):
            cells.append(record)
        elif isinstance(record, Run):
            header = record
    return cells, header


def asv_environment_name() -> str:
    """How asv names ``existing:<this interpreter>``: with the interpreter's path, which must not be published."""
    return f"existing-py{os.path.abspath(shutil.which(sys.executable) or sys.executable).replace(os.path.sep, '_')}"


def prepare(private: Path, results: Path, machine: str, head: str, configuration: Path) -> None:
    """A private asv configuration whose results hold this commit's earlier numbers, under the name asv looks for."""
    found = settings(configuration)
    here = configuration.parent
    found["repo"] = str(here / found["repo"])
    found["benchmark_dir"] = str(here / found["benchmark_dir"])
    found["branches"] = ["HEAD"]  # what is measured; the configured branch may not exist in this clone
    found["results_dir"] = str(private / "results")
    found["env_dir"] = str(private / "env")
    found["html_dir"] = str(private / "html")
    (private / CONFIGURATION).write_text(json.dumps(found), encoding="utf-8")
    (private / "results" / machine).mkdir(parents=True)
    earlier = _read_json(results / machine / f"{head[:8]}-{existing_name()}.json")
    if earlier is not None:
        earlier["env_name"] = asv_environment_name()
        name = f"{head[:8]}-{asv_environment_name()}.json"
        (private / "results" / machine / name).write_text(json.dumps(earlier), encoding="utf-8")


def merge(source: Path, results: Path, machine: str) -> None:
    """Move asv's files into the results: ours under a public name, ``benchmarks.json`` as the union of both."""
    folder = results / machine
    for path in sorted((source / machine).glob("*.json")):
        found = _read_json(path)
        if found is None:
            continue
        name = path.name
        if found.get("env_name") == asv_environment_name():
            found["env_name"] = existing_name()
            found["python"] = f"{sys.version_info[0]}.{sys.version_info[1]}"
            if isinstance(found.get("params"), dict):
                found["params"]["python"] = found["python"]
            name = f"{found['commit_hash'][:8]}-{existing_name()}.json"
            skip_unmeasured(found, measured(folder / CELLS_DIR, found["commit_hash"]))
        _replace(folder / name, found)
    known = _read_json(results / "benchmarks.json") or {}
    _replace(results / "benchmarks.json", known | (_read_json(source / "benchmarks.json") or {}))


def measured(folder: Path, commit: str) -> set[Key]:
    """The cells of a commit that the run files of a folder hold; a file that cannot be read holds none."""
    found: set[Key] = set()
    for path in sorted(folder.glob("*.jsonl")):
        try:
            cells, header = read(path)
        except (OSError, msgspec.DecodeError):
            continue
        if header is not None and header.commit == commit:
            found |= {(cell.track, cell.case, cell.contender) for cell in cells}
    return found


def skip_unmeasured(found: dict[str, Any], cells: set[Key]) -> None:
    """In asv's result file: null becomes NaN, "skipped", where no cell of our own suites stands behind it."""
    columns = found["result_columns"]
    for name, row in found["results"].items():
        match = _OUR_SUITE.fullmatch(name)
        held = dict(zip(columns, row, strict=False))
        if match is None or match["track"] not in track_modules() or len(held["params"]) != 2:
            continue
        keys = [(match["track"], *(text.strip("'\"") for text in pair)) for pair in product(*held["params"])]
        values = held["result"] or [None] * len(keys)
        row[columns.index("result")] = [
            math.nan if value is None and key not in cells else value for key, value in zip(keys, values, strict=True)
        ]


def publish(staged: Path, path: Path) -> None:
    """Put a finished file in place in one step, on the disk before it has its name."""
    if staged.parent != path.parent:  # another file system, most likely
        near = path.with_name(f".{path.name}.{os.getpid()}")
        shutil.copyfile(staged, near)
        staged = near
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(staged, path)


def _replace(path: Path, content: dict[str, Any]) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps(content, indent=1), encoding="utf-8")
    publish(staged, path)


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file holds none: asv's files may be cut short."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None
    return found if isinstance(found, dict) else None
