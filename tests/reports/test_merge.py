"""Merging: in any order, as often as you like, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archbench.cells import encode
from archbench.reports.load import NoResults
from archbench.reports.merge import Conflict, merge
from archbench.reports.rows import load
from results_builder import MACHINE, cell, note, run, small, write

COLUMNS = ["result", "params", "version", "started_at", "stats_ci_99_a"]
BENCHMARKS = ("a.time_x", "a.time_y", "b.track_z")


def asv(machine: str, commit: str, rows: dict[str, list[Any]], **changes: Any) -> dict[str, Any]:
    data = {"version": 2, "commit_hash": commit, "env_name": "e", "date": 1, "params": {"machine": machine}}
    return data | {"result_columns": COLUMNS, "results": rows, "durations": {"<build>": 1.0}} | changes


def plant(folder: Path, tree: dict[str, bytes]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def harvest(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


RUNS = {
    f"20260102T03040{i}Z-aaaaaa": b"".join(
        encode(r) + b"\n" for r in (run("m1", f"20260102T03040{i}Z-aaaaaa"), note(), cell("base"), cell("fast", 0.5))
    )
    for i in range(3)
}
a_number = st.sampled_from([0.5, 1.5, 2.0])
a_row = st.tuples(a_number, st.sampled_from([None, 1, 2, 3]), st.sampled_from([None, 0.25])).map(
    lambda drawn: [[drawn[0]], [], "v1", drawn[1], [drawn[2]]][: 5 if drawn[2] else 4]
)
some_rows = st.dictionaries(st.sampled_from(BENCHMARKS), a_row, min_size=1)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, bytes]:
    """Small results folders over the same few names, so that they meet."""
    tree: dict[str, bytes] = {}
    for machine in draw(st.sets(st.sampled_from(["m1", "m2"]), min_size=1)):
        ram = draw(st.sampled_from(["8 GB", "16 GB"]))
        tree[f"{machine}/machine.json"] = json.dumps({"machine": machine, "ram": ram, "version": 1}).encode()
        for commit in draw(st.sets(st.sampled_from(["aaaa", "bbbb"]))):
            found = asv(machine, commit, draw(some_rows), date=draw(st.sampled_from([1, 2])))
            found["durations"] = draw(st.dictionaries(st.sampled_from(["<build>", "a.time_x"]), a_number))
            tree[f"{machine}/{commit}-e.json"] = json.dumps(found, indent=draw(st.sampled_from([None, 1]))).encode()
    for identity in draw(st.sets(st.sampled_from(sorted(RUNS)))):
        whole = RUNS[identity]
        kept = draw(st.sampled_from([whole, b"".join(whole.splitlines(keepends=True)[:-1])]))
        tree[f"m1/cells/{identity}.jsonl"] = kept
    described = draw(st.dictionaries(st.sampled_from(BENCHMARKS), st.sampled_from([{"unit": "s"}, {"unit": "B"}])))
    if described:
        tree["benchmarks.json"] = json.dumps(described | {"version": 2}).encode()
    return tree


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(a=trees(), b=trees(), c=trees())
def test_merging_is_commutative_associative_and_idempotent(
    a: dict[str, bytes], b: dict[str, bytes], c: dict[str, bytes], tmp_path: Path
) -> None:
    count = iter(range(100))

    def joined(*parts: dict[str, bytes]) -> dict[str, bytes]:
        into = tmp_path / "into"
        shutil.rmtree(into, ignore_errors=True)
        assert merge([plant(tmp_path / f"part{next(count)}", part) for part in parts], into).problems == []
        return harvest(into)

    ab = joined(a, b)
    assert ab == joined(b, a)
    assert joined(ab, c) == joined(a, joined(b, c)) == joined(c, b, a)
    assert joined(a, a) == joined(a) == a
    assert joined(ab, a) == joined(ab, ab) == ab


def test_a_merge_into_a_folder_is_the_merge_of_both(tmp_path: Path) -> None:
    rows = {"a.time_x": [[1.0], [], "v1", 5]}
    here = plant(tmp_path / "here", {"m/machine.json": b'{"machine": "m"}'})
    (here / "m" / "aaaa-e.json").write_text(json.dumps(asv("m", "aaaa", rows)))
    newer = {"a.time_x": [[2.0], [], "v1", 9], "a.time_y": [[3.0], [], "v1", 1]}
    there = plant(tmp_path / "there", {"m/machine.json": b'{"machine": "m"}'})
    (there / "m" / "aaaa-e.json").write_text(json.dumps(asv("m", "aaaa", newer)))
    done = merge([there], here)
    assert (done.written, done.unchanged) == (["m/aaaa-e.json"], 1)
    assert sorted((r.track, r.metrics["latency_s"].value) for r in load(here).all_rows()) == [
        ("a.time_x", 2.0),
        ("a.time_y", 3.0),
    ]
    again = merge([there], here)
    assert (again.written, again.unchanged) == ([], 2)


def test_version_1_of_asv_joins_with_version_2(tmp_path: Path) -> None:
    old = {"version": 1, "commit_hash": "aaaa", "env_name": "e", "date": 1, "params": {"machine": "m"}}
    old["results"] = {"a.time_x": {"result": [0.5], "params": [], "stats": [{"ci_99": [0.4, 0.6], "repeat": 9}]}}
    machine = {"m/machine.json": b'{"machine": "m"}'}
    parts = [
        plant(tmp_path / "old", machine | {"m/x.json": json.dumps(old).encode()}),
        plant(
            tmp_path / "new", machine | {"m/x.json": json.dumps(asv("m", "aaaa", {"a.time_y": [[2.0], []]})).encode()}
        ),
    ]
    merge(parts, tmp_path / "into")
    found = {r.track: r.metrics["latency_s"] for r in load(tmp_path / "into").all_rows()}
    assert found["a.time_x"].ci == (0.4, 0.6)
    assert found["a.time_y"].value == 2.0


def test_two_runs_of_one_name_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    identity = "20260102T030405Z-aaaaaa"
    for name, slowdown in (("a", 0.5), ("b", 0.6)):
        write(tmp_path / name, [run(identity=identity), note(), cell("base"), cell("fast", slowdown)])
    small(tmp_path / "c")
    (tmp_path / "c" / MACHINE / "cells" / f"{identity}.jsonl").rename(
        tmp_path / "c" / MACHINE / "cells" / "other.jsonl"
    )
    for parts in ("abc", "bca", "cab"):
        with pytest.raises(Conflict, match=rf"{identity}\.jsonl and .*{identity}\.jsonl are two different runs"):
            merge([tmp_path / part for part in parts], tmp_path / "into")
        assert not (tmp_path / "into").exists()


def test_what_the_reader_would_not_read_is_named_and_stays_behind(tmp_path: Path) -> None:
    results = small(tmp_path / "results")
    (results / MACHINE / "bad.json").write_text("{")
    (results / MACHINE / "link.json").symlink_to("/etc/hostname")
    done = merge([results], tmp_path / "into")
    assert [problem.path.removeprefix(f"{results}/{MACHINE}/") for problem in done.problems] == [
        "link.json",
        "bad.json",
    ]
    assert not (tmp_path / "into" / MACHINE / "bad.json").exists()
    assert load(tmp_path / "into").problems == []


def test_an_unreadable_file_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    results, into = small(tmp_path / "results"), small(tmp_path / "into")
    (run_file,) = (into / MACHINE / "cells").glob("*.jsonl")
    run_file.write_text("precious")
    with pytest.raises(Conflict, match="not readable"):
        merge([results], into)
    assert run_file.read_text() == "precious"


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoResults, match="nowhere"):
        merge([small(tmp_path / "results"), tmp_path / "nowhere"], tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"m/machine.json": b'{"machine": "m"}'}
    rows = [{"a.time_x": [[value], [], "v1", value]} for value in (1, 2)]
    here, there = (
        plant(tmp_path / name, machine | {"m/x.json": json.dumps(asv("m", "aaaa", row)).encode()})
        for name, row in zip(("here", "there"), rows, strict=True)
    )
    before = harvest(here)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("archbench.atomic.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        merge([there], here)
    assert harvest(here) == before
