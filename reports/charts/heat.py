"""The heat table: contenders by cases, the slowdown as text on a colour from a ramp for colour-blind readers too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archbench.cells import Scalar
from archbench.formatting import significant
from archbench.reports.row import Row

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
    ranks: bool  # whether its numbers are those that rank


def shade(slowdown: float) -> str:
    """``same`` within 3 %, else the side and how far, in quarters of an eight-fold difference."""
    distance = abs(math.log(slowdown))
    if distance < math.log(1.03):
        return "same"
    step = min(STEPS, 1 + math.floor(STEPS * distance / FULL))
    return f"{'f' if slowdown < 1 else 's'}{step}"


def heat(
    rows: Sequence[Row],
    order: Sequence[str],
    cases: Mapping[str, Mapping[str, Scalar]],
    metric: str = "slowdown",
) -> Heat | None:
    """The table of one machine at one commit; contenders with a number that ``order`` lacks come after.

    ``metric`` is a ratio to the baseline. The ring marks a first place where the metric is what ranks.
    """
    cells = {(row.contender, row.case): row for row in rows}
    timed = [row for row in rows if metric in row.metrics]
    measured = {row.case for row in timed}
    columns = [slug for slug in cases if slug in measured] + sorted(measured - set(cases))
    shown = [*order, *sorted({row.contender for row in timed} - set(order))]
    if len(columns) < 2 or len(shown) < 2:
        return None
    aside = {row.contender for row in rows if row.note.differs is not None}
    squares = {name: [_square(cells.get((name, case)), metric) for case in columns] for name in shown}
    lines = [HeatRow(name, name in aside, own) for name, own in squares.items()]
    return Heat(columns, lines, any(row.ranking == metric for row in timed))


def _square(row: Row | None, metric: str) -> Square:
    if row is None:
        return Square("", "none", False, "not measured")
    found = row.metrics.get(metric)
    if found is None:
        return Square("–", "none", False, f"{row.status}: {row.reason}" if row.reason else row.status)
    text = significant(found.value, 3)
    if row.note.differs is not None:
        return Square(text, "aside", False, "another function: not ranked")
    first = metric == row.ranking and row.rank is not None and row.rank[0] == 1
    return Square(text, shade(found.value), first, "")
