"""The heat table: contenders by cases, the slowdown as text on a colour from a ramp for colour-blind readers too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archbench.cells import Scalar
from archbench.formatting import significant
from archbench.reports.rows import Row

STEPS = 4  # shades on each side of 1x
FULL = math.log(8.0)  # an eight-fold difference has the strongest shade


@dataclass(frozen=True)
class Square:
    """One contender at one case."""

    text: str
    shade: str  # "f4" (far faster than the baseline) to "f1", "same", "s1" to "s4" (far slower), "none", "aside"
    first: bool
    title: str


@dataclass(frozen=True)
class HeatRow:
    """One contender. ``aside``: it answers another question, so its speed wins nothing and gets no colour."""

    name: str
    aside: bool
    squares: list[Square]


@dataclass(frozen=True)
class Heat:
    """Rows in the order given, a column per case."""

    cases: list[str]
    rows: list[HeatRow]


def shade(slowdown: float) -> str:
    """``same`` within 3 %, else the side and how far, in quarters of an eight-fold difference."""
    distance = abs(math.log(slowdown))
    if distance < math.log(1.03):
        return "same"
    step = min(STEPS, 1 + math.floor(STEPS * distance / FULL))
    return f"{'f' if slowdown < 1 else 's'}{step}"


def heat(rows: Sequence[Row], order: Sequence[str], cases: Mapping[str, Mapping[str, Scalar]]) -> Heat | None:
    """The table of one machine at one commit; contenders with a time that ``order`` lacks come after."""
    cells = {(row.contender, row.case): row for row in rows}
    timed = [row for row in rows if "slowdown" in row.metrics]
    measured = {row.case for row in timed}
    columns = [slug for slug in cases if slug in measured] + sorted(measured - set(cases))
    shown = [*order, *sorted({row.contender for row in timed} - set(order))]
    if len(columns) < 2 or len(shown) < 2:
        return None
    aside = {row.contender for row in rows if row.note.differs is not None}
    return Heat(
        columns,
        [HeatRow(name, name in aside, [_square(cells.get((name, case))) for case in columns]) for name in shown],
    )


def _square(row: Row | None) -> Square:
    if row is None:
        return Square("", "none", False, "not measured")
    slowdown = row.metrics.get("slowdown")
    if slowdown is None:
        return Square("–", "none", False, f"{row.status}: {row.reason}" if row.reason else row.status)
    text = significant(slowdown.value, 3)
    if row.note.differs is not None:
        return Square(text, "aside", False, "another function: not ranked")
    return Square(text, shade(slowdown.value), bool(row.rank and row.rank[0] == 1), "")
