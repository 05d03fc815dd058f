"""Reading a results folder: every file is looked at with suspicion, the good ones count, the others are named.

A results folder holds one folder per machine: asv's ``machine.json`` and ``<commit>-<env>.json`` files, our run files
in ``cells/``, and in ``verified.jsonl`` which of them came signed. asv's ``benchmarks.json`` lies beside the machines.
Nothing here raises for what a file holds: it becomes a ``Problem`` with its path and reason, and the rest is read.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archbench.cells import CELLS_DIR
from archbench.names import is_safe_name, legible
from archbench.reports.meaning import legible_texts

# Limits count work, not seconds, so that a slow machine refuses the same files as a fast one. They are set so that the
# worst file within them, 16 MiB of brackets, takes less than two seconds on a two-core virtual machine.
MAX_BYTES = 16 << 20
MAX_DEPTH = 5
MAX_FILES = 200_000
PROOFS = "verified.jsonl"


@dataclass(frozen=True, order=True)
class Problem:
    """A file, or a line of one, that did not count. ``path`` is relative to the results folder.

    Both may quote what a file or its name holds, so both are made legible.
    """

    path: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", legible(self.path))
        object.__setattr__(self, "reason", legible(self.reason))


class NoResults(ValueError):
    """There is nothing to show; the message says how to get numbers."""


class Unreadable(Exception):
    """A file that does not count; the message is the reason."""


@dataclass
class Files:
    """What a results folder holds, before anything is read."""

    machines: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> machine.json
    asv: list[tuple[str, Path]] = field(default_factory=list)  # (machine, file)
    runs: list[tuple[str, Path]] = field(default_factory=list)
    proofs: list[tuple[str, Path]] = field(default_factory=list)
    benchmarks: dict[str, Any] = field(default_factory=dict)  # name -> asv's description
    problems: list[Problem] = field(default_factory=list)


def no_results(folder: Path) -> NoResults:
    return NoResults(
        f"no results in {folder}: measure this machine with 'archbench run attention', or name another folder "
        "with --results"
    )


def read_bytes(path: Path) -> bytes:
    """A regular file's content. Raises Unreadable for anything else, and for more than ``MAX_BYTES``."""
    try:
        # Not followed and not waited for: a link may lead out of the tree, a FIFO never ends.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror}") from error
    with open(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise Unreadable("not a regular file")
        if found.st_size > MAX_BYTES:
            raise Unreadable(f"{found.st_size} bytes, more than {MAX_BYTES}")
        return file.read(MAX_BYTES + 1)


def read_json(content: bytes) -> Any:
    """JSON as asv writes it: bare NaN and Infinity are allowed here and become null or a status later.

    Raises Unreadable.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from error


def read_object(path: Path, check: Callable[[bytes, dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """A JSON object that passes ``check``, which raises ValueError. Raises Unreadable."""
    content = read_bytes(path)
    found = read_json(content)
    if not isinstance(found, dict):
        raise Unreadable(f"holds a {type(found).__name__}, not an object")
    if check is not None:
        try:
            check(content, found)
        except ValueError as error:
            raise Unreadable(str(error)) from error
    return found


def finite(value: object) -> float | None:
    """A finite number as float, else None. Booleans are no numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def survey(folder: Path) -> Files:
    """Find the files of a results folder. Raises NoResults where there is none."""
    if not folder.is_dir():
        raise no_results(folder)
    files = Files()
    for count, path in enumerate(_walk(folder, files, folder), start=1):
        if count > MAX_FILES:
            files.problems.append(Problem(relative(path, folder), f"more than {MAX_FILES} files: this and later ones"))
            break
        place = path.parent
        if path.name == "benchmarks.json":
            _guard(files, folder, path, lambda p=path: files.benchmarks.update(_benchmarks(p)))
        elif path.name == "machine.json":
            _guard(files, folder, path, lambda p=path: files.machines.update({p.parent.name: _machine(p)}))
        elif path.suffix == ".jsonl" and place.name == CELLS_DIR:
            files.runs.append((place.parent.name, path))
        elif path.name == PROOFS and place != folder:
            files.proofs.append((place.name, path))
        elif path.suffix == ".json":
            files.asv.append((place.name, path))
        elif path.suffix == ".jsonl":
            files.problems.append(Problem(relative(path, folder), "not a file of a results folder"))
    for machine, path in files.asv:
        if machine not in files.machines:
            files.problems.append(Problem(relative(path, folder), "its folder has no valid machine.json"))
    files.asv = [(machine, path) for machine, path in files.asv if machine in files.machines]
    return files


def _walk(folder: Path, files: Files, top: Path, depth: int = 0) -> Iterator[Path]:
    """Regular paths below a folder in a fixed order; links, odd names and depths are problems."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue  # files being written, and git's
        if not entry.name.isprintable():
            files.problems.append(Problem(relative(path, top), "not a usable file name"))
        elif entry.is_symlink():
            files.problems.append(Problem(relative(path, top), "a symbolic link: not followed"))
        elif not entry.is_dir(follow_symlinks=False):
            yield path
        elif depth >= MAX_DEPTH:
            files.problems.append(Problem(relative(path, top), "nested too deeply"))
        elif not is_safe_name(entry.name):
            files.problems.append(Problem(relative(path, top), "not a usable machine name"))
        else:
            yield from _walk(path, files, top, depth + 1)


def _guard(files: Files, folder: Path, path: Path, action: Any) -> None:
    try:
        action()
    except Unreadable as error:
        files.problems.append(Problem(relative(path, folder), str(error)))


def _machine(path: Path) -> dict[str, Any]:
    found = read_object(path)
    name = found.get("machine")
    if not is_safe_name(name):
        raise Unreadable(f"machine name {str(name)[:60]!r} is not usable")
    if name != path.parent.name:
        raise Unreadable(f"machine {name!r} lies in the folder of {path.parent.name!r}")
    shown: dict[str, Any] = legible_texts(found)
    return shown


def _benchmarks(path: Path) -> dict[str, Any]:
    return {name: legible_texts(entry) for name, entry in read_object(path).items() if isinstance(entry, dict)}
