"""Charts as data: labels stay in the picture, ticks apart, and another function does not look like a winner."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from archbench.reports.charts import BOTTOM, HEIGHT, LABELLED, TOP, UPRIGHT, drawn, few, looks, noted, ticks
from archbench.reports.charts.heat import heat
from archbench.reports.charts.scaling import scaling
from archbench.reports.rows import load
from results_builder import note, small

CASES = note().cases
LOOKS = {f"c{i}": i for i in range(300)}


def ending(*heights: float) -> list[tuple[str, list[tuple[float, float, str]]]]:
    return [(f"c{i}", [(100.0, height, "")]) for i, height in enumerate(heights)]


@pytest.mark.parametrize("count", [1, 17, 18, 19, 300])
@pytest.mark.parametrize("height", [TOP, 150.0, HEIGHT - BOTTOM])
def test_labels_stay_in_the_picture_and_apart(count: int, height: float) -> None:
    lines = drawn(ending(*[height] * count), LOOKS)
    labels = [line.label_y for line in lines if line.label_y is not None]
    assert len(labels) == min(count, LABELLED)
    assert min(labels) >= TOP
    assert max(labels) <= HEIGHT - BOTTOM
    assert all(b - a >= 14.9 for a, b in pairwise(labels))
    assert all(line.label_y is None for line in lines[: count - len(labels)])


def test_the_note_counts_what_has_no_label() -> None:
    assert noted("A.", drawn(ending(*range(20, 38)), LOOKS)) == "A."
    assert noted("", drawn(ending(*range(20, 43)), LOOKS)).startswith("5 of 23 contenders are grey")


def test_a_long_name_is_cut_and_whole_in_the_title() -> None:
    name = "x" * 300
    (line,) = drawn([(name, [(1.0, 20.0, "")])], {name: 0})
    assert line.name == name
    assert len(line.label) == 33


@pytest.mark.parametrize(("low", "high"), [(1e-300, 1e300), (5e-324, 1.7e308), (1.0, 1.1), (1e-9, 1e3)])
def test_at_most_twelve_ticks_that_do_not_touch(low: float, high: float) -> None:
    found = ticks(low, high)
    placed = few([(UPRIGHT * i / max(1, len(found) - 1), "") for i in range(len(found))], UPRIGHT)
    assert len(placed) <= 12
    assert all(b[0] - a[0] > 20 for a, b in pairwise(placed))


def test_another_function_is_no_winner_in_the_heat_table(tmp_path: Path) -> None:
    found = heat(load(small(tmp_path)).rows, ["fast", "base", "slow"], CASES)
    assert found is not None
    aside = {row.name: row for row in found.rows}
    assert [row.name for row in found.rows if row.aside] == ["other"]
    assert {square.shade for square in aside["other"].squares} == {"aside"}
    assert not any(square.first for square in aside["other"].squares)
    assert {square.shade for square in aside["fast"].squares} == {"f2"}


def test_another_function_is_named_so_beside_its_line(tmp_path: Path) -> None:
    rows = load(small(tmp_path)).rows
    found = scaling(CASES, rows, looks(rows))
    assert found is not None
    lines = {line.name: line for line in found.lines}
    assert lines["other"].label == "other (another function)"
    assert lines["fast"].label == "fast"
    assert lines["other"].dash not in {line.dash for line in found.lines if line.name != "other"}
