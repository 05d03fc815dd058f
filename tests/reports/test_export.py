"""The export: the contract, equal numbers in every format, and what wins when cells repeat."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path

import pytest

from archbench.cells import ContenderNote, Started
from archbench.reports.export import export
from archbench.reports.load import NoResults
from archbench.reports.rows import load
from archbench.reports.views import standings
from results_builder import COMMIT, MACHINE, cell, note, run, small, write


def rows(folder: Path) -> list[dict]:
    text, problems = export(folder, "json")
    assert problems == []
    return json.loads(text)["rows"]


def test_the_row_is_the_contract(tmp_path: Path) -> None:
    text, _ = export(small(tmp_path), "json")
    found = json.loads(text)
    assert found["schema"] == 1
    assert found["generated_from"] == [f"{MACHINE}/cells/20260102T030405Z-aaaaaa.jsonl"]
    row = next(r for r in found["rows"] if r["contender"] == "fast" and r["case"] == "len128")
    assert list(row) == [
        "machine", "commit", "track", "case", "contender", "status", "reason", "rank", "baseline", "metrics",
        "limit_fraction", "host", "reproduce", "verified", "origin", "source",
    ]  # fmt: skip
    assert (row["machine"], row["commit"], row["rank"], row["baseline"]) == (MACHINE, COMMIT, [1, 1], "base")
    assert set(row["metrics"]["slowdown"]) == {"value", "ci", "n", "unit"}
    assert row["metrics"]["slowdown"]["value"] == 0.5
    assert row["metrics"]["peak_bytes"] == {"value": 4096.0, "ci": None, "n": 1, "unit": "B"}
    assert row["limit_fraction"] == 0.8
    assert row["reproduce"] == "archbench run attention/fast --case len128"
    assert row["host"]["load1"] == 0.5
    assert row["host"]["cpu.cores"] == 2
    assert row["host"]["dirty"] is False


def test_ranks_are_intervals_and_other_functions_have_none(tmp_path: Path) -> None:
    found = {r["contender"]: r for r in rows(small(tmp_path)) if r["case"] == "len128"}
    assert {name: r["rank"] for name, r in found.items()} == {
        "fast": [1, 1], "base": [2, 2], "slow": [3, 3], "other": None, "gpu_only": None, "died": None,
    }  # fmt: skip
    assert (found["died"]["status"], found["died"]["reason"]) == ("crashed", "the process ended without a result")
    assert found["gpu_only"]["reason"] == "needs CUDA"
    assert found["gpu_only"]["metrics"] == {}


def test_overlap_and_the_aa_band_make_ties(tmp_path: Path) -> None:
    write(tmp_path, [run(), note(), cell("base"), cell("near", 1.015), cell("far", 1.5, half=0.02)])
    found = {r["contender"]: r["rank"] for r in rows(tmp_path)}
    assert found == {"base": [1, 2], "near": [1, 2], "far": [3, 3]}
    noisy = cell("far", 1.5, half=0.001)
    noisy = type(noisy)(
        **{f: getattr(noisy, f) for f in noisy.__struct_fields__}
        | {"control": cell("x", 1.8).metrics["slowdown"], "duel": None}
    )
    write(tmp_path, [run(), note(), cell("base", half=0.001), noisy])
    assert {r["contender"]: r["rank"] for r in rows(tmp_path)} == {"base": [1, 2], "far": [1, 2]}


def test_the_newest_run_of_a_cell_counts_and_commits_stay_apart(tmp_path: Path) -> None:
    write(tmp_path, [run(), note(), cell("base"), cell("fast", 0.9)])
    later = run(identity="20260202T030405Z-bbbbbb", started="2026-02-02T03:04:05+00:00")
    write(tmp_path, [later, note(), cell("fast", 0.5)])
    other = run(identity="20260302T030405Z-cccccc", commit="ffff", started="2026-03-02T03:04:05+00:00")
    write(tmp_path, [other, note(), cell("fast", 0.7)])
    found = {(r["commit"], r["contender"]): r for r in rows(tmp_path)}
    assert found[COMMIT, "fast"]["metrics"]["slowdown"]["value"] == 0.5
    assert found[COMMIT, "fast"]["rank"] == [1, 1]
    assert found["ffff", "fast"]["rank"] == [1, 1]
    assert len(found) == 3


def test_numbers_are_equal_in_json_and_csv_and_named_in_markdown(tmp_path: Path) -> None:
    found = rows(small(tmp_path))
    table = list(csv.DictReader(io.StringIO(export(tmp_path, "csv")[0])))
    assert len(table) == len(found)
    for row, line in zip(found, table, strict=True):
        assert line["contender"] == row["contender"]
        for name, metric in row["metrics"].items():
            assert float(line[name]) == metric["value"]
            if metric["ci"]:
                assert [float(line[f"{name}_ci_lo"]), float(line[f"{name}_ci_hi"])] == metric["ci"]
    markdown = export(tmp_path, "md")[0].splitlines()
    assert len(markdown) == len(found) + 2
    assert "| 500 µs | 0.500× (0.495-0.505) |" in next(line for line in markdown if "fast" in line)


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    small(tmp_path)
    for format in ("json", "csv", "md"):
        assert export(tmp_path, format) == export(tmp_path, format)


def test_a_spreadsheet_gets_no_formulas(tmp_path: Path) -> None:
    write(tmp_path, [run(), note(), cell("base"), cell("x", status="crashed", reason="=HYPERLINK(1)")])
    assert "'=HYPERLINK(1)" in export(tmp_path, "csv")[0]


@pytest.mark.parametrize("make", [lambda p: p / "missing", lambda p: p])
def test_nothing_to_show_says_how_to_get_numbers(tmp_path: Path, make: object) -> None:
    with pytest.raises(NoResults, match="archbench run"):
        export(make(tmp_path), "json")


def test_a_contender_that_lacks_a_note_is_still_a_row(tmp_path: Path) -> None:
    write(tmp_path, [run(), cell("ghost", 0.9), cell("base")])
    assert {r["contender"] for r in rows(tmp_path)} == {"ghost", "base"}
    assert ContenderNote().differs is None


def test_a_run_that_was_cut_off_does_not_replace_what_was_measured(tmp_path: Path) -> None:
    write(tmp_path, [run(), note(), cell("base"), cell("fast", 0.5)])
    later = run(identity="20260202T030405Z-bbbbbb", started="2026-02-02T03:04:05+00:00")
    write(
        tmp_path,
        [later, note(), Started("attention", "len128", "fast", "base"), Started("attention", "len512", "fast")],
    )
    found = {(r["case"], r["contender"]): r["status"] for r in rows(tmp_path)}
    assert found == {("len128", "base"): "ok", ("len128", "fast"): "ok", ("len512", "fast"): "crashed"}


def test_what_asv_calls_failed_and_no_run_asked_for_is_no_row(tmp_path: Path) -> None:
    write(tmp_path, [run(), note(), cell("base")])
    params = [["'len128'", "'len512'"], ["'base'", "'fast'"]]
    data = {
        "version": 2, "commit_hash": COMMIT, "env_name": "e", "date": 1, "params": {"machine": MACHINE},
        "result_columns": ["result", "params"],
        "results": {"attention.Attention.track_slowdown": [[1.0, None, None, 0.7], params]},
    }  # fmt: skip
    (tmp_path / MACHINE / f"{COMMIT[:8]}-e.json").write_text(json.dumps(data))
    described = {"attention.Attention.track_slowdown": {"param_names": ["case", "contender"], "type": "track"}}
    (tmp_path / "benchmarks.json").write_text(json.dumps(described))
    found = {(r["case"], r["contender"]): r["status"] for r in rows(tmp_path)}
    assert found == {("len128", "base"): "ok", ("len512", "fast"): "ok"}


def test_a_command_to_copy_is_safe_in_a_shell(tmp_path: Path) -> None:
    write(tmp_path, [run(), note(), cell("base"), cell("x; rm -rf ~", 0.5, "it's")])
    (row,) = (r for r in rows(tmp_path) if r["contender"] != "base")
    assert shlex.split(row["reproduce"]) == ["archbench", "run", "attention/x; rm -rf ~", "--case", "it's"]


def test_a_row_of_a_crowded_machine_is_shown_and_ranks_nobody(tmp_path: Path) -> None:
    crowded = cell("fast", 0.5, reason="other processes used 46% of the machine's cores while it was measured")
    write(tmp_path, [run(), note(), cell("base"), crowded, cell("slow", 2.0), cell("base", case="len512"),
                     cell("fast", 0.9, "len512"), cell("slow", 3.0, "len512")])  # fmt: skip
    found = {(r["case"], r["contender"]): r["rank"] for r in rows(tmp_path)}
    assert found["len128", "fast"] == [1, 3]
    assert found["len128", "base"] == [1, 2]
    assert found["len512", "fast"] == [1, 1]
    table = {s.name: (s.place, s.coverage) for s in standings(load(tmp_path).rows)}
    assert table == {"fast": ("1", "1 of 1"), "base": ("2", "1 of 1"), "slow": ("3", "1 of 1")}
