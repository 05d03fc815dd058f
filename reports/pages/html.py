"""Templates to bytes: autoescaped jinja2, inlined style and script, a Content-Security-Policy with their hashes."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from archbench import __version__
from archbench.names import is_safe_name


def page_name(name: str) -> str:
    """A file name for a track or machine: its own name where that is safe, a hash of it elsewhere."""
    if is_safe_name(name) and len(name) <= 80:
        return name
    return "x" + hashlib.sha256(name.encode()).hexdigest()[:16]


def render(template: str, path: str, **values: Any) -> bytes:
    """A page as UTF-8. ``path`` is its place in the site: links to other pages start from it."""
    root = "../" * path.count("/")
    return environment().get_template(template).render(root=root, page=path, **values).encode()


def inlined(value: Any) -> Markup:
    """JSON inside a script element: no character of it can end the element or start a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    for mark, escape in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(mark, escape)
    return Markup(text)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def static(name: str) -> str:
    return (files("archbench.reports") / "static" / name).read_text(encoding="utf-8")


@cache
def environment() -> Environment:
    """The jinja2 environment of all pages."""
    made = Environment(
        loader=PackageLoader("archbench.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = static("board.css"), static("board.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; base-uri 'none'"
    )
    made.globals |= {
        "style": Markup(style),
        "script": Markup(script),
        "policy": policy,
        "harness": __version__,
        "page_name": page_name,
    }
    made.filters["inlined"] = inlined
    return made
