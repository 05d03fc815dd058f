"""How the numbers come about, limits first: the text of ``method.md``, which the documentation points to as well."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

from archbench.reports.markup import markup
from archbench.reports.pages import Board, Output
from archbench.reports.pages.html import render


def outputs(board: Board) -> Iterator[Output]:
    text = (files("archbench.reports") / "method.md").read_text(encoding="utf-8")
    yield Output("method.html", "", lambda: render("method.html.j2", "method.html", text=markup(text, depth=0)))
