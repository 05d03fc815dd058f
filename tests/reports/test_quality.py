"""Training tracks on the board: ranked by their quality, seed by seed, and never across different data."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import msgspec
import pytest

from archbench.cells import Cell, Data, Metric
from archbench.reports import views
from archbench.reports.export import as_json
from archbench.reports.grid import grid, line
from archbench.reports.meaning import check_cell, check_record
from archbench.reports.rows import load
from archbench.reports.site import render
from archbench.stats import mean_interval
from results_builder import note, run, study, trained, write

CASE = "text-len128@abcdef01"


def test_the_ratio_of_the_errors_ranks_and_not_the_time(tmp_path: Path) -> None:
    rows = {row.contender: row for row in load(study(tmp_path)).rows if row.case == CASE}
    assert {name: row.rank for name, row in rows.items()} == {
        "base": (1, 2),
        "lost": (1, 2),
        "quick": (3, 3),
        "gpu_only": None,
    }
    logs = [math.log((x * 1.2 + 0.001 * i) / x) for i, x in enumerate([0.30, 0.32, 0.31, 0.29])]
    ratio = rows["quick"].metrics["test_error_ratio"]
    assert ratio.value == pytest.approx(math.exp(mean_interval(logs).value))
    assert ratio.n == 4


def test_a_row_without_data_stands_with_those_of_its_run(tmp_path: Path) -> None:
    assert {row.case for row in load(study(tmp_path)).rows} == {CASE, "text-len512@abcdef01"}


def test_other_data_is_another_case(tmp_path: Path) -> None:
    study(tmp_path)
    told = msgspec.structs.replace(note("mixing"), quality="test_error")
    other = "0123456789abcdef"
    later = run(identity="20260103T030405Z-dddddd")
    write(tmp_path, [later, told, trained("base", [0.1, 0.2], fingerprint=other)])
    rows = load(tmp_path).rows
    assert {row.case for row in rows} >= {CASE, "text-len128@01234567"}
    (alone,) = [row for row in rows if row.case.endswith("01234567")]
    assert alone.reproduce == "archbench run mixing/base --case text-len128"
    assert alone.host["data.fingerprint"] == other


def test_the_case_keeps_its_axes_and_says_its_data(tmp_path: Path) -> None:
    cases = load(study(tmp_path)).tracks["mixing"].cases
    assert cases[CASE] == {"length": 128, "data": "text@abcdef01"}


def test_the_sentence_says_what_speed_costs(tmp_path: Path) -> None:
    rows = load(study(tmp_path)).rows
    table = views.standings(rows)
    said = views.sentence(rows, table, "a step")
    assert said.startswith("mixing on amd-epyc-zen4-2c: base and lost have the lowest test error of 3 contenders")
    assert "quick, the quickest, takes 0.600× (0.596-0.604) the time a step of base and has 1.22×" in said
    assert [s.time_text for s in table if s.name == "quick"] == ["0.600× (0.596-0.604)"]
    won = views.winner(rows, table)
    assert won.margin.endswith("test error")
    assert won.lead == "quick has 1.22× the test error of base"


def test_times_are_of_what_the_track_says(tmp_path: Path) -> None:
    results = load(study(tmp_path))
    table = views.standings(results.rows)
    steps = views.track_board(results.rows, table, results.tracks["mixing"])
    assert "the time a step of base" in steps.sentence
    assert steps.timed == "a step"
    images = views.track_board(results.rows, table, msgspec.structs.replace(results.tracks["mixing"], item="image"))
    assert "the time an image of base" in images.sentence
    assert images.timed == "an image"


def test_a_page_says_what_its_slowdown_is_of(tmp_path: Path) -> None:
    study(tmp_path / "results")
    page = (render(tmp_path / "results", tmp_path / "site").index.parent / "track/mixing.html").read_text()
    assert page.count("Slowdown of a step") > 1
    assert "Slowdown of a call" not in page


def test_the_table_has_the_error_with_its_interval(tmp_path: Path) -> None:
    results = load(study(tmp_path))
    table = grid("rows", results.rows, results.tracks["mixing"].cases)
    assert ("quality", "Test error", "mean over the seeds", True) in table.offered
    base = next(entry for entry in table.lines if entry.row.contender == "base")
    assert base.quality == "0.305 (0.284-0.326)"
    assert "test_error 0" not in base.others


def test_the_page_shows_error_and_time_side_by_side(tmp_path: Path) -> None:
    render(study(tmp_path / "results"), tmp_path / "site")
    page = (tmp_path / "site" / "track" / "mixing.html").read_text()
    assert "Test error against time" in page
    assert "Geometric mean of the test error against the baseline's, seed by seed" in page
    assert "Test error against the baseline: blue is lower" in page
    assert "Test error: text-len128@abcdef01" in page
    assert "Data <b>text</b>: made for this test" in page
    quick = (tmp_path / "site" / "contender" / "mixing" / "quick.html").read_text()
    assert '<th scope="col">Test error against baseline</th><th scope="col">Slowdown of a step</th>' in quick


def test_the_export_names_the_data(tmp_path: Path) -> None:
    rows = json.loads(as_json(load(study(tmp_path))))["rows"]
    assert rows[0]["host"]["data.origin"] == "made for this test"


def bad(**changes: object) -> Cell:
    return msgspec.structs.replace(trained("base", [0.1, 0.2, 0.3]), **changes)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (bad(samples={"test_error": [0.1, 0.2, 0.2]}), "its samples give"),
        (bad(samples={"test_error": [0.1, 0.3]}), "is of 3 runs, there are 2"),
        (bad(samples={"test_error": [0.1, 0.2, math.inf]}), "not finite"),
        (bad(samples={"test_error": [None, None, None]}), "a number without a run"),
        (bad(samples={"test_loss": [1.0]}), "a number without a run"),
        (bad(data=Data("text", "", "../../etc")), "does not look like a hash"),
    ],
)
def test_numbers_that_do_not_follow_from_their_runs_are_refused(cell: Cell, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_cell(cell)


def test_an_error_of_nought_has_no_ratio(tmp_path: Path) -> None:
    told = msgspec.structs.replace(note("mixing"), quality="test_error")
    write(tmp_path, [run(), told, trained("base", [0.1, 0.2]), trained("fast", [0.0, 0.0])])
    rows = {row.contender: row for row in load(tmp_path).rows}
    assert rows["fast"].rank is None
    assert rows["fast"].metrics["test_error"] == Metric(0.0, "ratio", (0.0, 0.0), 2)


def test_a_seed_without_an_error_is_not_left_out(tmp_path: Path) -> None:
    told = msgspec.structs.replace(note("mixing"), quality="test_error")
    write(tmp_path, [run(), told, trained("base", [0.1] * 4), trained("fast", [0.0, 0.0, 0.2, 0.2])])
    rows = {row.contender: row for row in load(tmp_path).rows}
    assert "test_error_ratio" not in rows["fast"].metrics


def test_runs_that_differ_beyond_belief_have_no_ratio(tmp_path: Path) -> None:
    told = msgspec.structs.replace(note("mixing"), quality="test_error")
    write(tmp_path, [run(), told, trained("base", [1e-11, 1e14]), trained("fast", [1e14, 1e-11])])
    rows = {row.contender: row for row in load(tmp_path).rows}
    assert "test_error_ratio" not in rows["fast"].metrics
    assert render(tmp_path, tmp_path / "site").made


def test_what_some_runs_did_not_reach_is_no_number_of_the_row(tmp_path: Path) -> None:
    told = msgspec.structs.replace(note("mixing"), quality="test_error")
    cell = trained("base", [0.1, 0.2])
    reached = {"seconds_to_target_s": Metric(4.0, "s", None, 1)}
    samples = cell.samples | {"seconds_to_target_s": [4.0, None]}
    write(tmp_path, [run(), told, msgspec.structs.replace(cell, metrics=cell.metrics | reached, samples=samples)])
    (row,) = load(tmp_path).rows
    assert "seconds_to_target_s" not in row.metrics
    assert "test_error" in row.metrics


@pytest.mark.parametrize("quality", ["slowdown", "latency_s", "error", "test_error_ratio"])
def test_a_quality_is_no_number_of_every_cell(quality: str) -> None:
    with pytest.raises(ValueError, match="is a number that every cell has"):
        check_record(msgspec.structs.replace(note("mixing"), quality=quality))


def test_line_of_a_row_without_quality_is_empty(tmp_path: Path) -> None:
    results = load(study(tmp_path))
    row = next(row for row in results.rows if row.contender == "gpu_only")
    assert line(row, views.RatioScale.over(results.rows)).quality == ""
    shutil.rmtree(tmp_path)
