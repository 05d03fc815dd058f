"""asv's own result trees: every number equals asv's own reading of the same file."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from archbench.reports.asv_reader import Reader
from archbench.reports.asv_tree import AsvFile, parse
from archbench.reports.load import read_bytes, read_object
from archbench.reports.rows import load

ROOT = Path(__file__).resolve().parents[2]
TREES = Path(os.environ.get("ARCHBENCH_ASV_TREES", ROOT.parent / "shared" / "asv-results"))


def trees() -> list[Path]:
    return sorted(path.parent for path in TREES.glob("*/results/benchmarks.json"))


def version_2(folder: Path, results: dict, machine: str = "box", **changes: object) -> Path:
    """One result file as asv 0.6 writes it."""
    (folder / machine).mkdir(parents=True, exist_ok=True)
    (folder / machine / "machine.json").write_text(json.dumps({"machine": machine, "version": 1}))
    data = {
        "version": 2,
        "commit_hash": "abcdef12" * 5,
        "env_name": "virtualenv-py3.11",
        "date": 1700000000000,
        "params": {"machine": machine, "python": "3.11"},
        "python": "3.11",
        "requirements": {},
        "env_vars": {},
        "result_columns": ["result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b",
                           "stats_q_25", "stats_q_75", "stats_number", "stats_repeat", "samples", "profile"],
        "results": results,
        "durations": {},
    }  # fmt: skip
    path = folder / machine / "abcdef12-virtualenv-py3.11.json"
    path.write_text(json.dumps(data | changes))
    return path


def equal(ours: float | None, theirs: object) -> bool:
    """asv keeps NaN and Infinity; we keep null."""
    if theirs is None or (isinstance(theirs, float) and not math.isfinite(theirs)):
        return ours is None
    return ours == theirs


def read_by_asv(path: Path, machine: str, scratch: Path) -> Any:
    """asv's own reading: old files are brought up to date first, on a copy. Raises asv's UserError."""
    results = pytest.importorskip("asv.results", reason="asv is not installed")
    copy = scratch / machine / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, copy)
    results.Results.update(str(copy))
    return results.Results.load(str(copy), machine_name=machine)


def same(a: AsvFile, b: AsvFile) -> bool:
    """Whether two readings of a file are one; the order of its benchmarks is free."""
    facts = [(file.commit, file.environment, file.date_ms, file.params) for file in (a, b)]
    points = [sorted(file.points(), key=lambda point: (point.benchmark, point.parameters)) for file in (a, b)]
    return facts[0] == facts[1] and points[0] == points[1]


def agrees_with_asv(path: Path, machine: str, scratch: Path) -> int:
    """Compare every value and interval of a file with asv's; how many were compared."""
    theirs = read_by_asv(path, machine, scratch)
    ours = parse(read_object(path), machine)
    assert same(Reader().read(read_bytes(path), machine), ours)  # the quick way and the careful one
    assert (ours.commit, ours.environment, ours.date_ms) == (theirs.commit_hash, theirs.env_name, theirs.date)
    points = {(point.benchmark, point.parameters): point for point in ours.points()}
    compared = 0
    for key in theirs.get_all_result_keys():
        params = theirs.get_result_params(key)
        values = theirs.get_result_value(key, params)
        stats = theirs.get_result_stats(key, params) if theirs._stats.get(key) else [None] * len(values)
        for combination, value, stat in zip(itertools.product(*params), values, stats, strict=True):
            point = points.pop((key, tuple(map(str, combination))))
            assert equal(point.value, value), (key, combination)
            low, high = (stat or {}).get("ci_99_a"), (stat or {}).get("ci_99_b")
            known = all(isinstance(end, (int, float)) and math.isfinite(end) for end in (low, high))
            assert point.interval == ((low, high) if known else None), (key, combination)
            compared += 1
    assert points == {}
    return compared


@pytest.mark.skipif(not trees(), reason=f"no asv result trees in {TREES.name} (set ARCHBENCH_ASV_TREES)")
@pytest.mark.parametrize("tree", trees(), ids=lambda path: path.parent.name)
def test_every_number_of_a_real_tree_equals_asvs_own_reading(tree: Path, tmp_path: Path) -> None:
    from asv.util import UserError

    files = sorted(path for path in tree.glob("*/*.json") if path.name != "machine.json")
    found = load(tree)
    refused = {problem.path for problem in found.problems}
    compared = 0
    for path in files:
        if path.relative_to(tree).as_posix() in refused:
            with pytest.raises(UserError):  # what we refuse, asv refuses too
                read_by_asv(path, path.parent.name, tmp_path)
        else:
            compared += agrees_with_asv(path, path.parent.name, tmp_path)
    assert compared > 100
    assert found.count == compared


def test_values_parameters_failures_and_skips(tmp_path: Path) -> None:
    path = version_2(
        tmp_path,
        {
            "a.time_x": [[0.5, None, math.nan, math.inf], [["1", "2"], ["'u'", "'v'"]], "v1", 1, 2.0,
                         [0.4, None, None, None],
                         [math.inf, None, None, None], None, None, [3, None, None, None], [10, None, None, None]],
            "a.track_y": [[7], [], "v1"],
            "a.mem_gone": [None, [], "v1"],
        },
    )  # fmt: skip
    assert agrees_with_asv(path, "box", tmp_path / "scratch") == 6
    rows = {(r.track, r.case): r for r in load(tmp_path).all_rows()}
    assert rows["a.time_x", "1, 'u'"].metrics["latency_s"].value == 0.5
    assert rows["a.time_x", "1, 'u'"].metrics["latency_s"].ci is None
    assert rows["a.time_x", "1, 'v'"].status == "crashed"
    assert rows["a.time_x", "2, 'u'"].status == "unsupported"
    assert rows["a.time_x", "2, 'v'"].status == "crashed"
    assert rows["a.track_y", "-"].metrics["value"].value == 7
    assert rows["a.mem_gone", "-"].status == "crashed"
    assert rows["a.track_y", "-"].contender == "virtualenv-py3.11"


def test_our_own_suites_are_rows_of_their_track_where_the_cells_are_lost(tmp_path: Path) -> None:
    params = [["'len128'", "'len512'"], ["'naive'"]]
    version_2(
        tmp_path,
        {
            "attention.Attention.track_latency": [[0.5, math.nan], params, "1", 1, 1, [0.4, None], [0.6, None]],
            "attention.Attention.track_slowdown": [[2.0, math.nan], params, "1"],
        },
    )
    described = {"param_names": ["case", "contender"], "type": "track", "unit": "s"}
    (tmp_path / "benchmarks.json").write_text(
        json.dumps({f"attention.Attention.track_{m}": described for m in ("latency", "slowdown")} | {"version": 2})
    )
    (row,) = load(tmp_path).rows
    assert (row.track, row.case, row.contender, row.status) == ("attention", "len128", "naive", "ok")
    assert {name: m.value for name, m in row.metrics.items()} == {"latency_s": 0.5, "slowdown": 2.0}
