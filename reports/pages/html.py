"""Templates to bytes: autoescaped jinja2, inlined style and scripts, a Content-Security-Policy with their hashes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemBytecodeCache, PackageLoader, StrictUndefined
from markupsafe import Markup

from archbench import __version__
from archbench.names import is_safe_name


def page_name(name: str) -> str:
    """A file name for a track or machine: its own where that is safe, with a hash where only its case may tell it from
    another (some file systems cannot), a hash alone elsewhere."""
    mark = hashlib.sha256(name.encode()).hexdigest()[:16]
    if not is_safe_name(name) or len(name) > 80:
        return f"x{mark}"
    return name if name == name.lower() else f"{name}-{mark[:8]}"


def track_path(track: str) -> str:
    return f"track/{page_name(track)}.html"


def contender_path(track: str, contender: str) -> str:
    return f"contender/{page_name(track)}/{page_name(contender)}.html"


def compare_path(track: str) -> str:
    return f"compare/{page_name(track)}.html"


def history_path(track: str) -> str:
    return f"history/{page_name(track)}.html"


def benchmark_path(name: str) -> str:
    """The page of a benchmark; one that is called like the list gets another name."""
    return f"benchmark/{page_name(name if name.lower() != 'index' else f'benchmark:{name}')}.html"


def render(template: str, path: str, *, scripts: tuple[str, ...] = (), **values: Any) -> bytes:
    """A page as UTF-8. ``path`` is its place in the site: links start from it. ``scripts`` are files of static/."""
    root = "../" * path.count("/")
    page = environment().get_template(template)
    inline = [Markup(static(name)) for name in scripts]
    return page.render(root=root, policy=_policy(scripts), scripts=inline, **values).encode()


def inlined(value: Any) -> Markup:
    """JSON inside a script element: no character of it can end the element or start a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    for mark, escape in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(mark, escape)
    return Markup(text)


@cache
def static(name: str) -> str:
    return (files("archbench.reports") / "static" / name).read_text(encoding="utf-8")


@cache
def _hash(name: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(static(name).encode()).digest()).decode() + "'"


@cache
def _policy(scripts: tuple[str, ...]) -> str:
    allowed = " ".join(map(_hash, ("early.js", "board.js", *scripts)))
    return f"default-src 'none'; style-src {_hash('board.css')}; script-src {allowed}; img-src data:; base-uri 'none'"


def _compiled() -> FileSystemBytecodeCache | None:
    """Where compiled templates are kept: by jinja2's digest of their source. None where there is no such place."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "archbench" / "templates"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return FileSystemBytecodeCache(str(folder)) if os.access(folder, os.W_OK) else None


@cache
def environment() -> Environment:
    """The jinja2 environment of all pages."""
    made = Environment(
        loader=PackageLoader("archbench.reports"),
        bytecode_cache=_compiled(),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {
        "style": Markup(static("board.css")),
        "early": Markup(static("early.js")),
        "script": Markup(static("board.js")),
        "harness": __version__,
        "page_name": page_name,
        "track_path": track_path,
        "benchmark_path": benchmark_path,
        "contender_path": contender_path,
        "compare_path": compare_path,
        "history_path": history_path,
    }
    made.filters["inlined"] = inlined
    return made
