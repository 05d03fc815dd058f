"""Hostile lines in our own run files: each is named with its line, the good ones count, nothing hides."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from archbench.cells import ContenderNote, encode
from archbench.reports.rows import load
from archbench.reports.site import render
from results_builder import MACHINE, cell, note, run, small, write


def line(**changes: Any) -> bytes:
    return json.dumps(json.loads(encode(cell("evil"))) | changes).encode()


def metric(name: str, value: float, unit: str, *interval: float, n: int = 1) -> bytes:
    """A cell whose only number is this one."""
    return line(metrics={name: {"value": value, "unit": unit, "ci": interval or None, "n": n}}, duel=None)


def duelling(**changes: Any) -> bytes:
    """A cell with other samples under the same numbers."""
    held = json.loads(encode(cell("evil")))
    return json.dumps(held | {"duel": held["duel"] | changes}).encode()


BAD_LINES: dict[str, bytes] = {
    "cut off": encode(cell("evil"))[:-9],
    "not UTF-8": encode(cell("evil")).replace(b"evil", b"ev\xefl"),
    "UTF-8 BOM": b"\xef\xbb\xbf" + encode(cell("evil")),
    "negative time": metric("latency_s", -1.0, "s"),
    "zero time": metric("latency_s", 0.0, "s"),
    "time of a year": metric("latency_s", 3e7, "s"),
    "zero slowdown": metric("slowdown", 0.0, "ratio"),
    "negative memory": metric("peak_bytes", -1.0, "B"),
    "reversed interval": metric("slowdown", 1.0, "ratio", 2.0, 0.5),
    "outside its interval": metric("slowdown", 3.0, "ratio", 1.0, 2.0),
    "interval below zero": metric("slowdown", 1.0, "ratio", -1.0, 2.0),
    "milliseconds": metric("latency_s", 1.0, "ms"),
    "bytes that are seconds": metric("peak_bytes", 1.0, "s"),
    "a unit nobody knows": metric("quality", 1.0, "parsecs"),
    "no samples": metric("latency_s", 1.0, "s", n=0),
    "endless samples": metric("latency_s", 1.0, "s").replace(b'"n": 1', b'"n": ' + b"1" * 400),
    "infinite": encode(cell("evil")).replace(b'"value":0.001', b'"value":1e999'),
    "nan": encode(cell("evil")).replace(b'"value":0.001', b'"value":NaN'),
    "an infinite curve": line(series={"loss": [[0.0, 1e300]]}).replace(b"1e+300", b"1e999"),
    "unknown status": line(status="splendid"),
    "a number on a red gate": line(status="wrong"),
    "ok without a number": line(metrics={}),
    "track outside": line(track="../../etc"),
    "no contender": line(contender=""),
    "above the roofline": line(limit_fraction=1.06),
    "absurd limit": line(limit_fraction=1e9),
    "negative limit": line(limit_fraction=-0.1),
    "time not of its samples": line(
        metrics=json.loads(line())["metrics"] | {"latency_s": {"value": 0.0005, "unit": "s", "ci": None, "n": 12}}
    ),
    "ratio not of its samples": line(
        metrics=json.loads(line())["metrics"] | {"slowdown": {"value": 0.5, "unit": "ratio", "ci": None, "n": 12}}
    ),
    "interval narrower than its samples": line(
        metrics=json.loads(line())["metrics"] | {"slowdown": {"value": 1.0, "unit": "ratio", "ci": [0.999, 1.001]}}
    ),
    "control not of its samples": line(control={"value": 1.0, "unit": "ratio", "ci": None, "n": 12}),
    "no variance": duelling(contender_s=[0.001] * 12, baseline_s=[0.001] * 12, control_s=[0.001] * 12),
    "a negative sample": duelling(baseline_s=[-0.001] * 12),
    "a sample of zero": duelling(contender_s=[0.0] * 12),
    "uneven duel": duelling(baseline_s=[0.001] * 11),
    "a duel of nothing": duelling(contender_s=[], baseline_s=[], control_s=[]),
    "a duel without end": duelling(**dict.fromkeys(("contender_s", "baseline_s", "control_s"), [0.001, 0.002] * 5000)),
    "negative CPU time": duelling(contender_cpu_s=[-1.0] * 12),
    "bidi in a contender": line(contender="fast\u202e"),
    "U+2028 in a case": line(case="len\u2028128"),
    "NUL in a metric": line(metrics={"late\0ncy": {"value": 1.0, "unit": "s"}}, duel=None),
    "a no-break space": line(contender="fa\u00a0st"),
    "a lone surrogate": line(contender="\ud800"),
    "a very long name": line(contender="x" * 10_000),
    "a very long reason": line(status="crashed", reason="x" * 100_000, metrics={}, duel=None, control=None),
    "a date that is none": line(started="yesterday"),
    "a date of another century": line(started="1970-01-01T00:00:00+00:00"),
    "not a record": b'{"record": "surprise"}',
    "track note with a bidi case": encode(note()).replace(b"len128", "len\u202e128".encode()),
    "started mark outside": b'{"record":"started","track":"../x","case":"len128","contender":"x"}',
    "deep": b"[" * 50_000,
    "deep in a value": line(host={"x": 1}).replace(b'"x": 1', b'"x": ' + b"[" * 50_000 + b"]" * 50_000),
    "blank": b"",
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_named_and_the_good_ones_count(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "results", [run(), note(), cell("base"), cell("fast", 0.5)])
    lines = path.read_bytes().splitlines()
    lines.insert(3, BAD_LINES[kind])
    path.write_bytes(b"\n".join(lines) + b"\n")
    before = time.process_time()
    found = load(tmp_path / "results")
    assert time.process_time() - before < 2.0
    assert [p.path for p in found.problems] == [f"{MACHINE}/cells/{path.name}:4"]
    assert [row.contender for row in found.rows] == ["fast", "base"]


BAD_HEADERS: dict[str, bytes] = {
    "no header": encode(cell("x")),
    "empty": b"",
    "no JSON": b"run",
    "other machine": encode(run(machine="other")),
    "a commit outside": encode(run(commit="../x")),
    "a commit that is an option": encode(run(commit="--output=x")),
    "a commit that is no hash": encode(run(commit="main")),
    "schema of tomorrow": encode(run(schema=99)),
    "a run outside": encode(run(identity="../../x")),
    "no date": encode(run(started="")),
    "a date that is none": encode(run(started="2026-13-45")),
    "a date of another century": encode(run(started="2199-01-01T00:00:00+00:00")),
    "before its commit": encode(run(started="2025-12-30T00:00:00+00:00")),
    "a ceiling of zero": encode(run()).replace(b"400000000000.0", b"0"),
    "a very long fact": encode(run(host={"cpu.model": "x" * 100_000})),
}


@pytest.mark.parametrize("kind", BAD_HEADERS)
def test_a_run_file_without_a_usable_header_is_named(kind: str, tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / MACHINE / "cells" / "z.jsonl").write_bytes(BAD_HEADERS[kind])
    found = load(tmp_path)
    assert [p.path for p in found.problems] == [f"{MACHINE}/cells/z.jsonl"]
    assert len(found.rows) == 16


def test_the_samples_of_a_run_count_once(tmp_path: Path) -> None:
    sold = [cell("base"), cell("fast", 0.5)]
    write(tmp_path, [run(), note(), *sold])
    again = run(identity="20260202T030405Z-bbbbbb", started="2026-02-02T03:04:05+00:00", commit="abcdef12" * 5)
    path = write(tmp_path, [again, note(), *sold, cell("honest", 0.7)])
    found = load(tmp_path)
    assert {p.path for p in found.problems} == {f"{MACHINE}/cells/{path.name}"}
    assert all("replays the samples of 20260102T030405Z-aaaaaa" in p.reason for p in found.problems)
    assert sorted((r.commit[:4], r.contender) for r in found.rows) == [
        ("0123", "base"), ("0123", "fast"), ("abcd", "honest"),
    ]  # fmt: skip


def test_free_text_shows_what_would_hide_in_it(tmp_path: Path) -> None:
    hidden = "safe\u202etxt.exe\x1b[2J\u2028\ufeff\u00a0end"
    records = [
        run(host={"cpu.model": hidden}, versions={"torch": hidden}),
        note(base=ContenderNote(hidden, "", "torch")),
        cell("base"),
        cell("dead", status="crashed", reason=hidden),
    ]
    write(tmp_path / "results", records)
    (tmp_path / "results" / MACHINE / "machine.json").write_text(json.dumps({"machine": MACHINE, "ram": hidden}))
    rendered = render(tmp_path / "results", tmp_path / "site")
    assert rendered.problems == []
    (dead,) = (row for row in load(tmp_path / "results").rows if row.contender == "dead")
    assert dead.reason == "safe\\u202etxt.exe\\u001b[2J\\u2028\\ufeff end"
    for page in (tmp_path / "site").rglob("*.html"):
        assert not set(page.read_text()) & set("\u202e\x1b\u2028\ufeff"), page
