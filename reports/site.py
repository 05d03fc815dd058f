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
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from archbench.reports.atomic import swap_folder
from archbench.reports.load import Problem
from archbench.reports.pages import Board, everything
from archbench.reports.pages.changes import state
from archbench.reports.rows import load

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
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).exists():
        raise RenderRefused(f"{out} holds files that are not a rendered board: name another folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{glob.escape(out.name)}.new-*"):  # by a render that was killed
        shutil.rmtree(left, ignore_errors=True)
    staged = out.with_name(f".{out.name}.new-{secrets.token_hex(4)}")
    memory = _remembered(out)
    board = Board(results, here if here in results.machines else None, memory.get("state", {}), address)
    try:
        pages, made = _write(board, staged, out, memory)
        swap_folder(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Rendered(out / "index.html", pages, made, results.count, results.problems)


def _write(board: Board, folder: Path, old: Path, memory: dict[str, Any]) -> tuple[int, int]:
    """Write every output into ``folder``; how many pages there are, and how many files were made."""
    code = code_digest()
    known: dict[str, list[str]] = memory.get("files", {}) if memory.get("code") == code else {}
    kept: dict[str, list[str]] = {}
    pages = made = 0
    folders: set[str] = set()
    for output in everything(board):
        path = folder / output.path
        if (parent := os.path.dirname(output.path)) not in folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.add(parent)
        key, content = known.get(output.path, ["", ""])
        if key != output.key or not _link(old / output.path, path, content):
            data = output.make()
            content = _content(data)
            path.write_bytes(data)
            made += 1
        kept[output.path] = [output.key, content]
        pages += output.path.endswith(".html")
    memo = {"code": code, "files": kept, "state": state(board)}
    (folder / MARKER).write_text(json.dumps(memo, sort_keys=True, allow_nan=False), encoding="utf-8")
    return pages, made


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
