"""Rendering: results in, a folder of self-contained pages out.

The pages are made from result files alone, in a folder beside the target, and swapped in when all are written: a render
that fails leaves the old board. Each page carries its style and script inline, under a Content-Security-Policy with
their hashes; nothing is fetched, and nothing from a result file is ever markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shutil
from collections import defaultdict
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from archbench import __version__
from archbench.names import is_safe_name
from archbench.reports import views
from archbench.reports.load import Problem
from archbench.reports.rows import Results, Row, load

MARKER = ".archbench-board"


class RenderRefused(ValueError):
    """The target is not ours to replace."""


@dataclass(frozen=True)
class Rendered:
    """What a render made."""

    index: Path
    pages: int
    rows: int
    problems: list[Problem]


def render(folder: Path, out: Path) -> Rendered:
    """Render a results folder. Raises NoResults, RenderRefused, OSError (the old board stays)."""
    results = load(folder)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise RenderRefused(f"{out} is not a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).exists():
        raise RenderRefused(f"{out} holds files that are not a rendered board: name another folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    staged, old = (out.with_name(f".{out.name}.{kind}-{mark}") for kind in ("new", "old"))
    try:
        pages = _write(results, staged)
        if out.exists():
            os.replace(out, old)
        os.replace(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return Rendered(out / "index.html", pages, len(results.rows), results.problems)


def page_name(name: str) -> str:
    """A file name for a track or machine: its own name where that is safe, a hash of it elsewhere."""
    if is_safe_name(name) and len(name) <= 80:
        return name
    return "x" + hashlib.sha256(name.encode()).hexdigest()[:16]


def _write(results: Results, folder: Path) -> int:
    for sub in ("track", "machine"):
        (folder / sub).mkdir(parents=True)
    (folder / MARKER).write_text(f"{__version__}\n", encoding="utf-8")
    environment = _environment()
    by_track: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in results.rows:
        by_track[row.track][row.machine].append(row)
    machines = sorted(set(results.machines) | {row.machine for row in results.rows})
    common = {"machines": machines, "tracks": sorted(by_track), "problems": results.problems}
    pages = 0

    def write(path: str, template: str, root: str, **values: Any) -> None:
        nonlocal pages
        html = environment.get_template(template).render(root=root, page=path, **common, **values)
        (folder / path).write_text(html, encoding="utf-8")
        pages += 1

    winners = {
        (machine, track): views.winner(_newest(rows), machine, track)
        for track, by_machine in by_track.items()
        for machine, rows in by_machine.items()
    }
    write("index.html", "index.html.j2", "", winners=winners, notes=results.tracks, rows=len(results.rows))
    write("status.html", "status.html.j2", "", failed=[row for row in results.rows if row.status != "ok"])
    for track, by_machine in sorted(by_track.items()):
        note = results.tracks.get(track)
        cases = note.cases if note else {}
        boards = []
        for _, rows in sorted(by_machine.items()):
            by_commit = defaultdict(list)
            for row in rows:
                by_commit[row.commit].append(row)
            ordered = views.newest_commits(rows)
            boards.append([views.board(by_commit[commit], cases) for commit in ordered])
        write(f"track/{page_name(track)}.html", "track.html.j2", "../", track=track, note=note, boards=boards)
    for machine in machines:
        view = views.machine_view(results, machine)
        write(f"machine/{page_name(machine)}.html", "machine.html.j2", "../", machine=view)
    return pages


def _newest(rows: list[Row]) -> list[Row]:
    commit = views.newest_commits(rows)[0]
    return [row for row in rows if row.commit == commit]


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def inlined(value: Any) -> Markup:
    """JSON inside a script element: no character of it can end the element or start a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    for mark, escape in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(mark, escape)
    return Markup(text)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("archbench.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    static = files("archbench.reports") / "static"
    style = (static / "board.css").read_text(encoding="utf-8")
    script = (static / "board.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; base-uri 'none'"
    )
    environment.globals |= {
        "style": Markup(style),
        "script": Markup(script),
        "policy": policy,
        "harness": __version__,
        "page_name": page_name,
        "html_rows": views.HTML_ROWS,
    }
    environment.filters["inlined"] = inlined
    return environment
