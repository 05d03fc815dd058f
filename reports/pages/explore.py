"""A page for heavy exploration: all rows of our tracks in one linked chart, drawn by Vega.

Vega is taken from the installed package ``vl-convert-python`` (extra ``board``) and written into this one page, so that
nothing is fetched and no third-party script lies in the repository. Without the package there is no such page.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

from markupsafe import Markup

from archbench.reports import views
from archbench.reports.pages import Board, Output, digest
from archbench.reports.pages.html import environment, inlined, static
from archbench.reports.row import Row

PATH = "explore.html"


def available(board: Board) -> bool:
    """Whether there is such a page: the package is installed and something was measured."""
    return bool(board.results.rows) and find_spec("vl_convert") is not None


def outputs(board: Board) -> Iterator[Output]:
    if not available(board):
        return
    values = [
        _values(row) for rows in board.by_track_and_machine.values() for row in views.current(rows) if row.metrics
    ]
    yield Output(PATH, digest(values), lambda: _page(values))


def _values(row: Row) -> dict[str, Any]:
    metrics = {name: metric.value for name, metric in row.metrics.items()}
    texts = {"machine": row.machine, "track": row.track, "case": row.case, "contender": row.contender}
    return {**texts, "family": row.note.family, "of_limit": row.limit_fraction, **metrics}


def _specification(values: list[dict[str, Any]]) -> dict[str, Any]:
    def axis(field: str, title: str) -> dict[str, Any]:
        return {"field": field, "type": "quantitative", "scale": {"type": "log"}, "title": title}

    in_both = {"and": [{"param": "brush"}, {"param": "legend"}]}
    points = {
        "params": [
            {"name": "brush", "select": "interval"},
            {"name": "legend", "select": {"type": "point", "fields": ["contender"]}, "bind": "legend"},
        ],
        "mark": {"type": "point", "filled": True, "size": 60},
        "encoding": {
            "x": axis("latency_s", "seconds a call"),
            "y": axis("slowdown", "slowdown against the baseline"),
            # a plain encoding: a colour that depends on the brush has no legend
            "color": {"field": "contender", "type": "nominal", "legend": {"symbolLimit": 60}},
            "opacity": {"condition": {"test": in_both, "value": 0.9}, "value": 0.1},
            "tooltip": [{"field": name} for name in ("machine", "track", "case", "contender", "latency_s", "slowdown")],
        },
        "width": 620,
        "height": 420,
    }
    bars = {
        "transform": [{"filter": {"param": "brush"}}],
        "mark": "tick",
        "encoding": {
            "x": axis("slowdown", "slowdown of the selected"),
            "y": {"field": "contender", "type": "nominal", "sort": {"op": "mean", "field": "slowdown"}, "title": None},
            "color": {"field": "contender", "type": "nominal", "legend": {"symbolLimit": 60}},
        },
        "width": 620,
    }
    return {"data": {"values": values}, "vconcat": [points, bars], "config": {"background": "white", "aria": False}}


@cache
def _bundle() -> str:
    import vl_convert

    # The specification is data in the page; no style elements, so that the policy can forbid them.
    snippet = """
const spec = JSON.parse(document.getElementById("spec").textContent);
const options = { actions: false, defaultStyle: false, renderer: "svg", tooltip: { disableDefaultStyle: true } };
// The chart is one picture with a name to a screen reader; the numbers are on the tracks' pages.
vegaEmbed("#explore", spec, options).then(() => {
  document.querySelector("#explore svg").setAttribute("aria-hidden", "true");
});
"""
    found: str = vl_convert.javascript_bundle(snippet)
    return found.replace("</script", "<\\/script")


def _page(values: list[dict[str, Any]]) -> bytes:
    script = _bundle()

    def sha(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    # Vega compiles the expressions of its specification, which is ours; 'unsafe-eval' is on this page only.
    policy = (
        f"default-src 'none'; style-src {sha(static('board.css'))}; img-src data:; base-uri 'none'; "
        f"script-src {sha(static('early.js'))} {sha(static('board.js'))} {sha(script)} 'unsafe-eval'"
    )
    page = environment().get_template("explore.html.j2")
    spec = inlined(_specification(values))
    return page.render(root="", policy=policy, scripts=[Markup(script)], spec=spec, rows=len(values)).encode()
