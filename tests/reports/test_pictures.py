"""Timelines, stacks and the instruments' table: what they say is what the cells hold, within bounds."""

from __future__ import annotations

import gzip
import math
import re
from pathlib import Path

import msgspec
import pytest

from archbench.cells import Metric, Span
from archbench.reports.charts import COLOURS, even_ticks, looks
from archbench.reports.charts.curves import curves
from archbench.reports.charts.stacked import stacks
from archbench.reports.charts.timeline import ACROSS, LEFT, MOST_BOXES, MOST_CASES, timelines
from archbench.reports.export import as_csv, as_markdown
from archbench.reports.instruments import instruments as tables
from archbench.reports.meaning import check_cell, check_record
from archbench.reports.row import Row
from archbench.reports.rows import Results, load
from archbench.reports.site import render
from archbench.reports.timelines import by_lane, covered_s
from archbench.reports.views import track_board
from archbench.reports.words import axes_of, predictions, said, words
from results_builder import cell, instruments, note, pipeline_spans

CASES = tuple(f"l8-d256-len128-b16-m{m}-w2-gloo" for m in (2, 4, 8, 16))
STACK = "memory of the largest rank"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return load(instruments(tmp_path_factory.mktemp("instruments")))


def spanned(*spans: Span, contender: str = "gpipe", case: str = CASES[0]) -> Row:
    return Row(machine="m", commit="c", track="t", case=case, contender=contender, status="ok", spans=spans)


@pytest.mark.parametrize("parts", [2, 4, 8, 16])
def test_the_idle_share_of_a_picture_is_that_of_its_schedule(parts: int) -> None:
    (picture,) = timelines([spanned(*pipeline_spans(2, parts))], {}, [])
    (group,) = picture.groups
    work, wait, update = 3 * parts, 3, 0.5  # in forwards of a micro-batch, for each of two stages
    assert {lane.idle for lane in group.lanes} == {f"idle {100 * wait / (work + wait + update):.3g} %"}
    assert picture.legend == [(0, "forward"), (1, "backward"), (2, "update")]  # who waits does no work
    assert [len(lane.boxes) for lane in group.lanes] == [2 * parts + 1] * 2


def test_contenders_share_a_scale_and_begin_at_their_first_piece() -> None:
    early = spanned(Span("rank 0", "forward", 0.0, 0.010, 0), contender="b")
    late = spanned(Span("rank 0", "forward", 7.0, 7.005, 0), Span("rank 0", "wait", 6.0, 7.0), contender="a")
    (picture,) = timelines([early, late], {}, ["b", "a"])
    assert [group.name for group in picture.groups] == ["b", "a"]
    first, second = (group.lanes[0].boxes[0] for group in picture.groups)
    assert (first.x, first.width) == (LEFT, ACROSS)
    assert (second.x, second.width) == (LEFT, ACROSS / 2)
    assert picture.ticks[0] == (LEFT, "0")
    assert picture.ticks[-1] == (LEFT + ACROSS, "10")  # milliseconds
    assert picture.rows == [("b", "rank 0", ["10.0 ms"], "0 %"), ("a", "rank 0", ["5.00 ms"], "0 %")]


def test_a_number_stands_where_there_is_room() -> None:
    wide, narrow = Span("r", "forward", 0.0, 0.95, 123), Span("r", "forward", 0.95, 1.0, 123456)
    (picture,) = timelines([spanned(wide, narrow, Span("r", "update", 0.99, 1.0))], {}, [])
    assert [box.label for box in picture.groups[0].lanes[0].boxes] == ["123", "", ""]
    assert picture.groups[0].lanes[0].boxes[1].title == "forward 123456: 50.0 ms from 950 ms"


def test_lanes_count_time_once_and_stand_in_order() -> None:
    spans = [
        Span("rank 10", "a", 0, 1),
        Span("rank 2", "a", 1, 3),
        Span("rank 2", "b", 2, 4),
        Span("rank 2", "a", 6, 7),
    ]
    lanes = by_lane(spans)
    assert list(lanes) == ["rank 2", "rank 10"]
    assert covered_s(lanes["rank 2"]) == 4.0


def test_a_page_of_endless_timelines_stays_a_page() -> None:
    many = [Span("r", f"kind {i % 9}", i, i + 1, i) for i in range(1400)]
    rows = [spanned(*many, contender=f"c{i}", case=f"case {k}") for i in range(4) for k in range(MOST_CASES + 2)]
    found = timelines(rows, {}, [])
    assert sum(len(lane.boxes) for t in found for group in t.groups for lane in group.lanes) <= MOST_BOXES
    assert [group.name for group in found[0].groups] == ["c0", "c1"]
    assert "Not drawn, for want of room: c2, c3." in found[0].note
    assert max(kind for kind, _ in found[0].legend) < COLOURS
    assert timelines([spanned(), spanned(Span("r", "wait", 0, 1)), spanned(Span("r", "x", 1, 1))], {}, []) == []


BAD_SPANS: dict[str, list[Span]] = {
    "before the begin": [Span("r", "forward", -0.1, 1.0)],
    "ends before it begins": [Span("r", "forward", 1.0, 0.5)],
    "not a number": [Span("r", "forward", math.nan, 1.0)],
    "endless": [Span("r", "forward", 0.0, math.inf)],
    "longer than a season": [Span("r", "forward", 0.0, 2e7)],
    "a part before the first": [Span("r", "forward", 0.0, 1.0, -1)],
    "a part beyond all": [Span("r", "forward", 0.0, 1.0, 10**7)],
    "no lane": [Span("", "forward", 0.0, 1.0)],
    "no kind": [Span("r", "", 0.0, 1.0)],
    "a long lane": [Span("r" * 61, "forward", 0.0, 1.0)],
    "a kind that hides": [Span("r", "for\u202eward", 0.0, 1.0)],
    "too many pieces": [Span("r", "forward", 0.0, 1.0)] * 4001,
    "too many lanes": [Span(f"rank {i}", "forward", 0.0, 1.0) for i in range(65)],
    "too many kinds": [Span("r", f"kind {i}", 0.0, 1.0) for i in range(25)],
}


@pytest.mark.parametrize("kind", BAD_SPANS)
def test_a_timeline_that_cannot_be_is_refused(kind: str) -> None:
    check_cell(cell("gpipe", spans=pipeline_spans(2, 4)))
    with pytest.raises(ValueError, match=r"timeline|lasts from|is part"):
        check_cell(cell("gpipe", spans=BAD_SPANS[kind]))


def test_a_timeline_and_stacks_come_with_a_right_answer_and_in_reason() -> None:
    with pytest.raises(ValueError, match="needs a right answer"):
        check_cell(cell("gpipe", status="wrong", reason="off", spans=pipeline_spans(2, 2)))
    for bad in (
        {f"s{i}": ["a"] for i in range(9)},
        {"me\u202e": ["a"]},
        {"memory": ["x"] * 41},
        {"memory": ["x" * 301]},
    ):
        with pytest.raises(ValueError, match="stack"):
            check_record(msgspec.structs.replace(note(), stacks=bad))


def test_a_bar_is_as_long_as_its_parts_and_marked_where_the_formula_says(results: Results) -> None:
    named = results.tracks["training"].stacks
    found = stacks(results.rows, results.tracks["training"].cases, named)
    assert [stack.case for stack in found] == list(CASES)
    (bar,) = (bar for bar in found[0].bars if bar.name == "fsdp")
    assert [part.title for part in bar.parts] == [
        "parameters 13.2 MiB, the formula says 13.2 MiB",
        "gradients 13.2 MiB, the formula says 13.2 MiB",
        "optimizer 26.4 MiB, the formula says 26.3 MiB",
        "activations 73.2 MiB",
    ]
    for part, after in zip(bar.parts, bar.parts[1:], strict=False):
        assert part.x + part.width == pytest.approx(after.x, abs=0.15)
        assert part.mark == pytest.approx(part.x + part.width * 25.3 / 25.4, abs=0.15)
    assert bar.parts[-1].mark is None
    assert bar.total == "126 MiB"
    assert [b.total for b in found[0].bars] == ["124 MiB", "124 MiB", "125 MiB", "126 MiB", "175 MiB", "175 MiB"]


def test_a_stack_leaves_out_what_does_not_add_up() -> None:
    metrics = {
        "a_bytes": Metric(2.0, "B"),
        "b_s": Metric(9.0, "s"),
        "c": Metric(-1.0, "ratio"),
        "d_bytes": Metric(3.0, "B"),
    }
    row = msgspec.structs.replace(cell("x"), metrics=metrics)
    rows = [Row(machine="m", commit="c", track="t", case="k", contender="x", status="ok", metrics=row.metrics)]
    (found,) = stacks(rows, {}, {"memory": ["a_bytes", "b_s", "c", "d_bytes", "nobody", "a_bytes"], "none": ["nobody"]})
    assert [part.title for part in found.bars[0].parts] == ["a 2 B", "d 3 B"]
    assert found.bars[0].total == "5 B"


def test_a_stack_of_predictions_looks_like_what_is_predicted() -> None:
    names = ("a_bytes", "b_bytes", "a_formula_bytes", "b_formula_bytes")
    metrics = {name: Metric(2.0 + i, "B") for i, name in enumerate(names)}
    rows = [Row(machine="m", commit="c", track="t", case="k", contender="x", status="ok", metrics=metrics)]
    seen, said_so, mixed = stacks(rows, {}, {"seen": names[:2], "predicted": names[2:], "mixed": names[:3]})
    assert seen.legend == said_so.legend == [(0, "a"), (1, "b")]
    assert [part.kind for part in seen.bars[0].parts] == [part.kind for part in said_so.bars[0].parts]
    assert (seen.marked, said_so.marked) == (True, False)
    assert mixed.legend[2:] == [(2, "a formula")]


def test_the_instruments_are_read_in_words_and_units(results: Results) -> None:
    rows = [row for row in results.rows if row.case == CASES[1]]
    (table,) = tables(rows, results.tracks["training"].cases, ["gpipe", "base"], "token")
    assert table.heads == [
        "tokens a second", "parameters", "gradients", "optimizer", "activations", "wire", "exposed communication share",
        "slowest rank", "first step", "checkpoint", "cost of parallelism", "parameter error", "updates", "bubble share",
    ]  # fmt: skip
    assert [name for name, _ in table.rows][:2] == ["gpipe", "base"]
    read = dict(zip(table.heads, table.rows[0][1], strict=True))
    latency = next(row for row in rows if row.contender == "gpipe").metrics["latency_s"].value
    assert float(read["tokens a second"].text) == pytest.approx(1 / latency, rel=0.005)
    assert (read["bubble share"].text, read["bubble share"].formula) == ("22.1 %", "20.0 %")
    assert (read["wire"].text, read["wire"].formula) == ("25.6 MiB", "25.3 MiB")
    assert (read["first step"].text, read["slowest rank"].text) == ("3.40 s", "1.04")
    assert dict(zip(table.heads, table.rows[1][1], strict=True))["bubble share"].text == ""
    assert tables([row for row in rows if not row.metrics], {}, [], "token") == []


def test_two_metrics_of_the_same_words_have_heads_of_their_own() -> None:
    metrics = {"checkpoint_s": Metric(1.0, "s"), "checkpoint_bytes": Metric(8.0, "B"), "trials": Metric(3.0, "ratio")}
    row = Row(machine="m", commit="c", track="t", case="k", contender="x", status="ok", metrics=metrics)
    (table,) = tables([row], {}, [], "call")
    assert table.heads == ["checkpoint seconds", "checkpoint bytes", "trials"]


def test_a_kind_of_work_and_a_part_look_the_same_in_every_picture() -> None:
    first = spanned(Span("r", "forward", 0, 1), Span("r", "backward", 1, 2), case="a")
    second = spanned(Span("r", "update", 0, 1), Span("r", "backward", 1, 2), case="b")
    assert [t.legend for t in timelines([first, second], {}, [])] == [
        [(0, "forward"), (1, "backward")],
        [(1, "backward"), (2, "update")],
    ]
    held = [{"a_bytes": Metric(2.0, "B"), "b_bytes": Metric(2.0, "B")}, {"b_bytes": Metric(2.0, "B")}]
    rows = [
        Row(machine="m", commit="c", track="t", case=f"case {i}", contender="x", status="ok", metrics=metrics)
        for i, metrics in enumerate(held)
    ]
    found = stacks(rows, {}, {"memory": ["a_bytes", "b_bytes"]})
    assert [[part.kind for part in stack.bars[0].parts] for stack in found] == [[0, 1], [1]]


def test_every_number_is_in_the_exports(results: Results) -> None:
    head, *lines = as_csv(results).splitlines()
    names = {name for row in results.rows for name in row.metrics}
    assert {"bubble_share", "wire_formula_bytes", "parameter_error"} <= names <= set(head.split(","))
    text = as_markdown(results)
    assert text.splitlines()[0].endswith("| status | also measured |")
    assert text.count("bubble share 22.1 %, ") == 2  # gpipe and one_f_one_b at one case
    assert len(lines) == len(results.rows)


def test_the_name_of_a_curve_says_its_axes(results: Results) -> None:
    (chart,) = curves(results.rows, looks(results.rows))
    assert chart.title == f"Peak bytes over batch: {CASES[0]}"
    assert (chart.x_label, chart.y_label) == ("batch", "peak bytes")
    assert [text for _, text in chart.x_ticks] == ["5", "10", "15", "20", "25", "30"]
    assert [text for _, text in chart.y_ticks] == ["64.0 MiB", "128 MiB", "192 MiB"]
    assert "batch 16: 152 MiB" in [text for _, _, text in chart.lines[0].points]


def test_there_is_no_half_rank_on_an_axis() -> None:
    found = [Row(machine="m", commit="c", track="t", case="k", contender="x", status="ok",
                 series={"own_time_s_over_rank": [(0.0, 0.1), (1.0, 0.102)]})]  # fmt: skip
    (chart,) = curves(found, {"x": 0})
    assert (chart.x_label, chart.y_label) == ("rank", "own time")
    assert [text for _, text in chart.x_ticks] == ["0", "1"]
    assert chart.y_ticks[0][1] == "100 ms"


def test_names_in_words() -> None:
    assert axes_of("loss") == ("loss", "step")
    assert axes_of("divergence over learning rate") == ("divergence", "learning rate")
    assert [words(name) for name in ("first_step_s", "wire_bytes", "bubble_share", "_s")] == [
        "first step", "wire", "bubble share", "_s",
    ]  # fmt: skip
    assert said("x_share", Metric(0.5, "ratio")) == "50.0 %"
    assert said("x_share", Metric(0.5, "s")) == "500 ms"
    assert [said("trials", Metric(value, "ratio")) for value in (12.0, 1.04, 1e9)] == ["12", "1.04", "1.00e+09"]
    names = ["save_s", "save_bytes", "save_formula_bytes", "bubble_share", "bubble_formula", "alone_formula_s"]
    assert predictions(names) == {"save_bytes": "save_formula_bytes", "bubble_share": "bubble_formula"}


@pytest.mark.parametrize(
    ("high", "unit", "expected"),
    [
        (10.0, "", [0, 2, 4, 6, 8, 10]),
        (100.0, "B", [0, 32, 64, 96]),
        (0.0, "", [0]),
        (5e-324, "", [0]),
    ],
)
def test_ticks_of_a_linear_axis_are_round(high: float, unit: str, expected: list[float]) -> None:
    assert even_ticks(high, unit) == expected


def test_a_contender_looks_the_same_in_every_chart(results: Results) -> None:
    board = track_board(results.rows, [], results.tracks["training"])
    seen: dict[str, set[tuple[int, int, str]]] = {}
    for chart in board.charts:
        for line in chart.lines:
            seen.setdefault(line.name, set()).add((line.colour, line.dash, line.marker))
    assert len(board.charts) > 1
    assert all(len(each) == 1 for each in seen.values())
    assert len({each for own in seen.values() for each in own}) == len(seen)
    assert seen["base"] == {(0, 0, "circle")}


def test_pictures_of_six_contenders_at_four_cases_are_a_small_page(tmp_path: Path) -> None:
    rendered = render(instruments(tmp_path / "results"), tmp_path / "site")
    assert rendered.problems == []
    page = (tmp_path / "site" / "track" / "training.html").read_text()
    assert page.count('<figure class="picture">') == 8
    assert len(re.findall(r"<table class=\"readings\">", page)) == 8 + 4
    assert page.count('<pattern id="k1"') == 1
    assert len(gzip.compress(page.encode(), 6)) < 40_000
