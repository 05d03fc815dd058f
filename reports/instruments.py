"""What the instruments saw: the numbers of a row beside its time, memory and error, a table per case.

A track's cells may carry a dozen metrics of its own. In the table of all rows they would be columns nobody can see
side by side, so they stand here: contenders down, metrics across, what a formula predicts beneath what was measured.
Where a time is per item, the first column is how many items a second that is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archbench.cells import Scalar
from archbench.formatting import quantity
from archbench.reports.export import MAIN
from archbench.reports.row import Row
from archbench.reports.words import is_share, many, predictions, said, share_text, words
from archbench.training import unit_of

UNITS = {"s": "seconds", "B": "bytes", "J": "joules"}
MOST_CASES = 24  # of a machine
MOST_COLUMNS = 32
MOST_ROWS = 60


@dataclass(frozen=True)
class Reading:
    """One metric of one contender as people read it, and what a formula predicts."""

    text: str = ""
    formula: str = ""


@dataclass(frozen=True)
class Instruments:
    """The table of a case: a head per column, a reading per contender and column."""

    case: str
    heads: list[str]
    rows: list[tuple[str, list[Reading]]]

    @property
    def predicted(self) -> bool:
        """Whether a formula predicts any of its numbers."""
        return any(cell.formula for _, cells in self.rows for cell in cells)


def extra(row: Row) -> list[str]:
    """The metrics of a row that are no column of the table of all rows, as its track reports them."""
    return [name for name in row.metrics if name not in (*MAIN, row.quality, row.ranking)]


def instruments(
    rows: Sequence[Row], cases: Mapping[str, Mapping[str, Scalar]], order: Sequence[str], item: str
) -> list[Instruments]:
    """The tables of a machine in the order of the track's cases; contenders in ``order``."""
    place = {name: i for i, name in enumerate(order)}
    found: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (place.get(row.contender, len(place)), row.contender)):
        if extra(row) or (item != "call" and "latency_s" in row.metrics):
            found[row.case].append(row)
    known = [slug for slug in cases if slug in found]
    order_of_cases = [*known, *sorted(found.keys() - set(known))]
    return [_table(case, found[case][:MOST_ROWS], item) for case in order_of_cases[:MOST_CASES]]


def _table(case: str, rows: Sequence[Row], item: str) -> Instruments:
    names = list(dict.fromkeys(name for row in rows for name in extra(row)))
    predicted = predictions(names)
    shown = [name for name in names if name not in predicted.values()][:MOST_COLUMNS]
    rate = [f"{many(item)} a second"] if item != "call" else []
    heads = [*rate, *(f"{head}{_apart(name, shown)}" for name, head in zip(shown, map(words, shown), strict=True))]
    told = [(row.contender, [_reading(row, name, predicted) for name in shown]) for row in rows]
    if item != "call":
        told = [(row.contender, [_rate(row), *cells]) for row, (_, cells) in zip(rows, told, strict=True)]
    return Instruments(case, heads, told)


def _apart(name: str, among: Sequence[str]) -> str:
    """What tells the head of a column from another of the same words: "checkpoint" has bytes and seconds."""
    alone = sum(words(other) == words(name) for other in among) == 1
    return "" if alone else f" {UNITS.get(unit_of(name), '')}".rstrip()


def _rate(row: Row) -> Reading:
    """Items a second: what people compare, though the board ranks by its inverse."""
    latency = row.metrics.get("latency_s")
    return Reading(quantity(1 / latency.value, "/s").removesuffix("/s").strip() if latency else "")


def _reading(row: Row, name: str, predicted: Mapping[str, str]) -> Reading:
    metric, formula = row.metrics.get(name), row.metrics.get(predicted.get(name, ""))
    if metric is None:
        return Reading()
    if formula is None:
        return Reading(said(name, metric))
    # "bubble_formula" does not say that it is a share, but what it predicts does.
    told = share_text(formula.value) if is_share(name) else quantity(formula.value, formula.unit)
    return Reading(said(name, metric), told)
