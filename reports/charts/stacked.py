"""Stacked bars: metrics that are parts of a whole (memory by kind), a bar per contender, with what formulas predict.

A track names its stacks. Each part has a colour and, beside the first, a hatching; where a formula predicts a part, a
thin mark stands at that length from the part's begin: on the part's end, where the formula holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archbench.cells import Scalar
from archbench.formatting import quantity
from archbench.reports.charts import COLOURS, even_ticks
from archbench.reports.row import Row
from archbench.reports.words import FORMULA, predictions, said, words

WIDTH, LEFT, RIGHT = 860, 190, 96
ACROSS = WIDTH - LEFT - RIGHT
BAR, GAP, TOP, AXIS = 24, 12, 10, 40
MOST_BARS = 24  # of a picture
MOST_CASES = 12  # of a stack on a machine
CHARACTER = 6.6
NAME_LENGTH = 24  # characters


@dataclass(frozen=True)
class Part:
    """One metric of a contender. ``mark``: where a formula says it ends."""

    x: float
    width: float
    kind: int
    label: str
    title: str
    mark: float | None


@dataclass(frozen=True)
class Bar:
    """One contender."""

    name: str
    y: int
    parts: list[Part]
    total: str
    total_x: float


@dataclass(frozen=True)
class Stack:
    """The contenders of a case. ``rows`` are the same as a table: contender, (number, formula) by part, total."""

    title: str
    case: str
    note: str
    legend: list[tuple[int, str]]
    bars: list[Bar]
    ticks: list[tuple[float, str]]
    marked: bool
    height: int
    rows: list[tuple[str, list[tuple[str, str]], str]]
    width: int = WIDTH
    left: int = LEFT
    right: int = WIDTH - RIGHT


def stacks(
    rows: Sequence[Row], cases: Mapping[str, Mapping[str, Scalar]], named: Mapping[str, Sequence[str]]
) -> list[Stack]:
    """A picture per stack and case that has numbers for it, the largest case first; of equals the track's first."""
    place = {slug: i for i, slug in enumerate(cases)}
    made = []
    for title, names in named.items():
        found: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if _total(row, names) > 0:
                found[row.case].append(row)
        largest = {case: max(_total(row, names) for row in own) for case, own in found.items()}
        order = sorted(found, key=lambda case: (-largest[case], place.get(case, len(place)), case))
        # A part looks the same in every picture.
        known = {name for own in found.values() for row in own for name in _parts(row, names)}
        kinds = [name for name in dict.fromkeys(names) if name in known]
        made += [_stack(title, case, found[case], kinds) for case in order[:MOST_CASES]]
    return made


def _parts(row: Row, names: Sequence[str]) -> list[str]:
    """The names a row has a number for, of the unit of the first and not below zero: others do not add up."""
    found = [name for name in dict.fromkeys(names) if name in row.metrics]
    unit = row.metrics[found[0]].unit if found else ""
    return [name for name in found if row.metrics[name].unit == unit and row.metrics[name].value >= 0]


def _total(row: Row, names: Sequence[str]) -> float:
    return sum(row.metrics[name].value for name in _parts(row, names))


def _stack(title: str, case: str, rows: Sequence[Row], kinds: Sequence[str]) -> Stack:
    ordered = sorted(rows, key=lambda row: (_total(row, kinds), row.contender))
    shown = ordered[:MOST_BARS]
    unit = shown[0].metrics[_parts(shown[0], kinds)[0]].unit
    longest = max(max(_total(row, kinds), _reach(row, kinds)) for row in shown)
    bars = [_bar(row, kinds, TOP + i * (BAR + GAP), longest) for i, row in enumerate(shown)]
    marked = any(part.mark is not None for bar in bars for part in bar.parts)
    note = [
        "A thin line is where a formula says that a part ends." if marked else "",
        f"{len(ordered) - len(shown)} larger ones are not drawn." if len(ordered) > len(shown) else "",
    ]
    return Stack(
        title=title,
        case=case,
        note=" ".join(filter(None, note)),
        legend=[(min(i, COLOURS - 1), name) for i, name in enumerate(_named(kinds))],
        bars=bars,
        ticks=[(round(LEFT + ACROSS * tick / longest, 1), quantity(tick, unit)) for tick in even_ticks(longest, unit)],
        marked=marked,
        height=TOP + len(bars) * (BAR + GAP) + AXIS,
        rows=[(row.contender, _told(row, kinds), quantity(_total(row, kinds), unit)) for row in shown],
    )


def _named(kinds: Sequence[str]) -> list[str]:
    """Parts in words. Where all of them are predictions, the title says so, and they are named as what they predict."""
    named = [words(kind).split() for kind in kinds]
    predicted = all(FORMULA in name for name in named)
    return [" ".join(word for word in name if not (predicted and word == FORMULA)) for name in named]


def _formula(row: Row, name: str) -> float | None:
    """What a formula predicts, in the unit of what was measured."""
    found = row.metrics.get(predictions(row.metrics).get(name, ""))
    return found.value if found and found.unit == row.metrics[name].unit and found.value >= 0 else None


def _reach(row: Row, names: Sequence[str]) -> float:
    """Where the farthest mark of a bar is."""
    start = farthest = 0.0
    for name in _parts(row, names):
        farthest = max(farthest, start + (_formula(row, name) or 0.0))
        start += row.metrics[name].value
    return farthest


def _bar(row: Row, kinds: Sequence[str], y: int, longest: float) -> Bar:
    parts, start = [], 0.0
    own = _parts(row, kinds)
    for name in own:
        metric, formula = row.metrics[name], _formula(row, name)
        width = ACROSS * metric.value / longest
        text = said(name, metric)
        told = f", the formula says {quantity(formula, metric.unit)}" if formula is not None else ""
        parts.append(
            Part(
                round(LEFT + ACROSS * start / longest, 1),
                round(width, 1),
                min(kinds.index(name), COLOURS - 1),
                text if CHARACTER * len(text) + 8 <= width else "",
                f"{words(name)} {text}{told}",
                None if formula is None else round(LEFT + ACROSS * (start + formula) / longest, 1),
            )
        )
        start += metric.value
    name = row.contender if len(row.contender) <= NAME_LENGTH else f"{row.contender[: NAME_LENGTH - 1]}\u2026"
    end = max([LEFT + ACROSS * start / longest, *(part.mark for part in parts if part.mark is not None)])
    return Bar(name, y, parts, quantity(start, row.metrics[own[0]].unit), round(end + 8, 1))


def _told(row: Row, kinds: Sequence[str]) -> list[tuple[str, str]]:
    return [_cell(row, name) if name in row.metrics else ("", "") for name in kinds]


def _cell(row: Row, name: str) -> tuple[str, str]:
    metric, formula = row.metrics[name], _formula(row, name)
    return said(name, metric), "" if formula is None else quantity(formula, metric.unit)
