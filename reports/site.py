"""Rendering: results in, a folder of self-contained files out.

The files are made from result files alone, in a folder beside the target, and swapped in when all are written: a render
that is killed or fails leaves the old board. A file whose inputs did not change since the last render is linked from
the old board, after its content was compared with what that render remembered of it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import psutil

from archbench.reports.atomic import swap_folder
from archbench.reports.load import Problem
from archbench.reports.pages import Board, Output, kinds
from archbench.reports.pages.changes import state
from archbench.reports.rows import load

# What hostile numbers raise in arithmetic and formatting; the checks of meaning.py come first, this is the second line.
ODD = (ArithmeticError, ValueError, LookupError, TypeError, RecursionError)
MARKER = ".archbench-board"  # what a render remembers: the digest of its code, of every file and of its inputs


class RenderRefused(ValueError):
    """The target is not ours to replace."""


@dataclass(frozen=True)
class Rendered:
    """What a render made."""

    index: Path
    pages: int
    made: int  # files that had to be made anew
    rows: int
    problems: list[Problem]


def render(folder: Path, out: Path, *, here: str | None = None, address: str = "") -> Rendered:
    """Render a results folder. Raises NoResults, RenderRefused, OSError (the old board stays)."""
    results = load(folder)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise RenderRefused(f"{out} is not a folder")
    if folder.resolve().is_relative_to(out.resolve()):
        raise RenderRefused(f"the results lie in {out}, which a render replaces: name another folder with --out")
    memory = _remembered(out)
    _refuse_foreign(out, memory)
    out.parent.mkdir(parents=True, exist_ok=True)
    _clean_up(out)
    staged = out.with_name(f".{out.name}.new-{os.getpid()}-{secrets.token_hex(4)}")
    board = Board(results, here if here in results.machines else None, memory.get("state", {}), address)
    try:
        pages, made = _write(board, staged, out, memory)
        swap_folder(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Rendered(out / "index.html", pages, made, results.count, results.problems)


def _refuse_foreign(out: Path, memory: dict[str, Any]) -> None:
    """Raises RenderRefused where the folder holds anything that no render of ours made: it would be lost."""
    if not out.is_dir():
        return
    known = {MARKER, *memory.get("files", {})}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if (path.is_dir() and not path.is_symlink()) or name in known:
            continue
        raise RenderRefused(f"{out} holds {name!r}, which no render made: name another folder with --out")


def _clean_up(out: Path) -> None:
    """Remove what renders into this folder left that were killed; one that still runs keeps its own."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.new-*"):
        owner = left.name.rpartition(".new-")[2].partition("-")[0]
        if not (owner.isdigit() and psutil.pid_exists(int(owner))):
            shutil.rmtree(left, ignore_errors=True)


def _write(board: Board, folder: Path, old: Path, memory: dict[str, Any]) -> tuple[int, int]:
    """Write every output into ``folder``; how many pages there are, and how many files were made."""
    code = code_digest()
    known: dict[str, list[str]] = memory.get("files", {}) if memory.get("code") == code else {}
    kept: dict[str, list[str]] = {}
    pages = made = 0
    folders: set[str] = set()
    for output in _outputs(board):
        path = folder / output.path
        if (parent := os.path.dirname(output.path)) not in folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.add(parent)
        key, content = known.get(output.path, ["", ""])
        if key != output.key or not _link(old / output.path, path, content):
            try:
                data = output.make()
            except ODD as error:
                _could_not(board, output.path, error)
                continue
            content = _content(data)
            path.write_bytes(data)
            made += 1
        kept[output.path] = [output.key, content]
        pages += output.path.endswith(".html")
    try:
        seen = state(board)
    except ODD:  # the page of changes is a problem already
        seen = {}
    memo = {"code": code, "files": kept, "state": seen}
    (folder / MARKER).write_text(json.dumps(memo, sort_keys=True, allow_nan=False), encoding="utf-8")
    return pages, made


def _outputs(board: Board) -> Iterator[Output]:
    """Every output, but for the page kinds that numbers nobody foresaw stop: they become problems."""
    for kind in kinds():
        found = kind.outputs(board)
        while True:
            try:
                output = next(found, None)
            except ODD as error:
                _could_not(board, f"{kind.__name__.rpartition('.')[2]} pages", error)
                break
            if output is None:
                break
            yield output


def _could_not(board: Board, what: str, error: Exception) -> None:
    board.results.problems.append(Problem(what, f"could not be rendered: {type(error).__name__}: {error}"[:300]))


def _link(source: Path, target: Path, content: str) -> bool:
    """Give an unchanged file of the old board a name in the new one. False where it is not what it was."""
    try:
        if source.is_symlink() or _content(source.read_bytes()) != content:
            return False
        os.link(source, target)
    except OSError:  # gone, or a file system without links
        return False
    return True


def _content(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _remembered(out: Path) -> dict[str, Any]:
    """What the last render wrote down, or nothing: it is a convenience, never a source of numbers."""
    try:
        found = json.loads((out / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@cache
def code_digest() -> str:
    """A digest of everything that turns results into files: the package's modules, templates, style and script."""
    found = hashlib.blake2b(digest_size=16)

    def add(place: Traversable, name: str) -> None:
        for entry in sorted(place.iterdir(), key=lambda entry: entry.name):
            if entry.is_dir() and entry.name not in ("__pycache__", "results", "site"):
                add(entry, f"{name}/{entry.name}")
            elif entry.name.endswith((".py", ".j2", ".css", ".js")):
                found.update(f"{name}/{entry.name}\0".encode() + entry.read_bytes())

    add(files("archbench.reports"), "reports")
    add(files("archbench"), "archbench")
    return found.hexdigest()
