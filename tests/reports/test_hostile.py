"""Hostile and broken files: each is named, the rest renders, and nothing of theirs is markup."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archbench.cells import Cell, ContenderNote, Metric, encode
from archbench.reports.export import export
from archbench.reports.rows import load
from archbench.reports.site import MARKER, RenderRefused, render
from results_builder import MACHINE, cell, note, run, small, write

SCRIPT = "<script>alert(1)</script>"


def asv_file(**changes: Any) -> str:
    data = {"version": 2, "commit_hash": "abc", "env_name": "e", "date": 1, "params": {"machine": MACHINE}}
    return json.dumps(data | {"result_columns": ["result", "params"], "results": {"a.track_x": [[1.0], []]}} | changes)


BAD_FILES: dict[str, str | bytes] = {
    "truncated": asv_file()[:-20],
    "empty": "",
    "bom": b"\xff\xfe{}",
    "not utf-8": b'{"version": 2, "x": "\xe9"}',
    "a list": "[]",
    "a number": "3",
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "version 99": asv_file(version=99),
    "no version and no results": "{}",
    "results a list": asv_file(results=[]),
    "row no list": asv_file(results={"a": 3}),
    "params no list": asv_file(results={"a": [[1], 3]}),
    "too many parameters": asv_file(results={"a": [[1], [list(range(1000))] * 3]}),
    "too few values": asv_file(results={"a": [[1, 2], []]}),
    "other machine": asv_file(params={"machine": "other"}),
    "commit an option": asv_file(commit_hash="--output=x"),
    "commit a number": asv_file(commit_hash=3),
    "columns no strings": asv_file(result_columns=[1, 2]),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_named_and_the_rest_counts(kind: str, tmp_path: Path) -> None:
    small(tmp_path / "results")
    content = BAD_FILES[kind]
    path = tmp_path / "results" / MACHINE / "bad-file.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    rendered = render(tmp_path / "results", tmp_path / "site")
    assert [problem.path for problem in rendered.problems] == [f"{MACHINE}/bad-file.json"]
    assert rendered.rows == 16
    assert "bad-file.json" in (tmp_path / "site" / "status.html").read_text()


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1e999", "1" + "0" * 400, '"text"', "[1]", "true"])
def test_a_value_that_is_no_finite_number_is_a_status_not_a_number(value: str, tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / MACHINE / "x.json").write_text(asv_file().replace("[1.0]", f"[{value}]"))
    row = next(r for r in load(tmp_path).rows if r.track == "a.track_x")
    assert row.status in ("crashed", "unsupported")
    assert row.metrics == {}
    json.loads(export(tmp_path, "json")[0], parse_constant=pytest.fail)


def line(**changes: Any) -> bytes:
    return json.dumps(json.loads(encode(cell("evil"))) | changes).encode()


BAD_LINES: dict[str, bytes] = {
    "cut off": encode(cell("evil"))[:-9],
    "negative time": line(metrics={"latency_s": {"value": -1.0, "unit": "s"}}),
    "zero slowdown": line(metrics={"slowdown": {"value": 0.0, "unit": "ratio"}}),
    "reversed interval": line(metrics={"slowdown": {"value": 1.0, "unit": "ratio", "ci": [2.0, 0.5]}}),
    "infinite": encode(cell("evil")).replace(b'"value":0.001', b'"value":1e999'),
    "nan": encode(cell("evil")).replace(b'"value":0.001', b'"value":NaN'),
    "unknown status": line(status="splendid"),
    "a number on a red gate": line(status="wrong"),
    "ok without a number": line(metrics={}),
    "track outside": line(track="../../etc"),
    "absurd limit": line(limit_fraction=1e9),
    "not a record": b'{"record": "surprise"}',
    "deep": b"[" * 50_000,
    "blank": b"",
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_named_and_the_good_ones_count(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "results", [run(), note(), cell("base"), cell("fast", 0.5)])
    lines = path.read_bytes().splitlines()
    lines.insert(3, BAD_LINES[kind])
    path.write_bytes(b"\n".join(lines) + b"\n")
    rendered = render(tmp_path / "results", tmp_path / "site")
    assert [p.path for p in rendered.problems] == [f"{MACHINE}/cells/{path.name}:4"]
    assert rendered.rows == 2


@pytest.mark.parametrize("kind", ["no header", "other machine", "no commit", "empty"])
def test_a_run_file_without_a_usable_header_is_named(kind: str, tmp_path: Path) -> None:
    small(tmp_path)
    content = {
        "no header": encode(cell("x")),
        "other machine": encode(run(machine="other")),
        "no commit": encode(run(commit="../x")),
        "empty": b"",
    }[kind]
    (tmp_path / MACHINE / "cells" / "z.jsonl").write_bytes(content)
    found = load(tmp_path)
    assert [p.path for p in found.problems] == [f"{MACHINE}/cells/z.jsonl"]
    assert len(found.rows) == 16


def test_unusable_machine_names_links_and_fifos_are_named_and_not_followed(tmp_path: Path) -> None:
    results = small(tmp_path / "results")
    for name, machine in (("escape", "../x"), ("script", SCRIPT), ("moved", "elsewhere")):
        (results / name).mkdir()
        (results / name / "machine.json").write_text(json.dumps({"machine": machine}))
        (results / name / "abc-e.json").write_text(asv_file(params={"machine": machine}))
    (results / "<b>bold").mkdir()
    (results / "link").symlink_to(tmp_path)
    (results / MACHINE / "secret.json").symlink_to("/etc/hostname")
    os.mkfifo(results / MACHINE / "pipe.json")
    (results / MACHINE / "cells" / "pipe.jsonl").unlink(missing_ok=True)
    os.mkfifo(results / MACHINE / "cells" / "pipe.jsonl")
    before = sorted(p for p in tmp_path.rglob("*") if "site" not in p.parts)
    rendered = render(results, tmp_path / "site")
    assert {p.path for p in rendered.problems} == {
        "escape/machine.json", "escape/abc-e.json", "script/machine.json", "script/abc-e.json", "moved/machine.json",
        "moved/abc-e.json", "<b>bold", "link", f"{MACHINE}/secret.json", f"{MACHINE}/pipe.json",
        f"{MACHINE}/cells/pipe.jsonl",
    }  # fmt: skip
    assert rendered.rows == 16
    assert sorted(p for p in tmp_path.rglob("*") if "site" not in p.parts) == before


def test_text_of_a_result_file_is_never_markup(tmp_path: Path) -> None:
    evil = f"{SCRIPT}\"'>&\u2028</script><!--"
    records = [
        run(host={evil: evil}, versions={evil: evil}, environment=evil, dirty=True),
        note(**{"base": ContenderNote(evil, evil, evil), evil: ContenderNote(evil, evil, evil, differs=evil)}),
        cell("base"),
        cell(evil, 2.0, evil, metrics=cell("x").metrics | {evil: Metric(1.0, evil)}),
        cell("dead", status="crashed", reason=evil),
    ]
    write(tmp_path / "results", records)
    (tmp_path / "results" / MACHINE / "x.json").write_text(asv_file(env_name=evil, results={evil: [[1.0], []]}))
    rendered = render(tmp_path / "results", tmp_path / "site")
    assert rendered.problems == []
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text()
        assert "<script>alert" not in text, page
        assert "</script><!--" not in text, page
        assert "'>&\u2028" not in text, page
        assert text.count("<script") == text.count("</script>")
    assert all(path.name.isascii() for path in (tmp_path / "site").rglob("*"))


def test_large_tables_come_as_data_that_cannot_end_its_element(tmp_path: Path) -> None:
    cases = [f"len{n}" for n in range(1, 60)]
    records = [run(), note(lengths=range(1, 60))]
    records += [cell(f"c{i}{SCRIPT}", 1 + i / 10, case) for case in cases for i in range(8)]
    write(tmp_path / "results", records)
    render(tmp_path / "results", tmp_path / "site")
    text = (tmp_path / "site" / "track" / "attention.html").read_text()
    assert 'class="rows-data"' in text
    assert "<script>alert" not in text
    assert text.count("<script") == text.count("</script>")


def test_a_folder_that_is_not_a_board_is_not_replaced(tmp_path: Path) -> None:
    results = small(tmp_path / "results")
    site = tmp_path / "site"
    site.mkdir()
    (site / "thesis.txt").write_text("years of work")
    with pytest.raises(RenderRefused, match="not a rendered board"):
        render(results, site)
    assert (site / "thesis.txt").read_text() == "years of work"
    (site / "thesis.txt").unlink()
    render(results, site)
    assert (site / MARKER).exists()
    render(results, site)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results", "site"]


def test_a_render_that_fails_leaves_the_old_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, site = small(tmp_path / "results"), tmp_path / "site"
    render(results, site)
    before = {p: p.read_bytes() for p in site.rglob("*.html")}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("archbench.reports.views.machine_view", full)
    with pytest.raises(OSError, match="No space"):
        render(results, site)
    assert {p: p.read_bytes() for p in site.rglob("*.html")} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results", "site"]


def test_two_renders_are_byte_equal(tmp_path: Path) -> None:
    results = small(tmp_path / "results")
    render(results, tmp_path / "a")
    render(results, tmp_path / "b")
    a, b = (
        {p.relative_to(tmp_path / x): p.read_bytes() for p in (tmp_path / x).rglob("*") if p.is_file()} for x in "ab"
    )
    assert a == b


GOOD = b"".join(encode(r) + b"\n" for r in (run(), note(), cell("base"), cell("fast", 0.5)))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_run_files_never_raise(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content)))
        cut = data.draw(st.integers(0, 12))
        content[at : at + cut] = data.draw(
            st.one_of(st.binary(max_size=8), st.sampled_from([b'"', b"\n", b"1e999", b"-"]))
        )
    folder = tmp_path_factory.mktemp("mutated")
    write(folder, [run(identity="20260101T000000Z-000000"), note(), cell("base", case="len512")])
    (folder / MACHINE / "cells" / "m.jsonl").write_bytes(bytes(content))
    found = load(folder)
    assert any(row.case == "len512" for row in found.rows)
    json.dumps([m.value for row in found.rows for m in row.metrics.values()], allow_nan=False)
    render(folder, folder.parent / f"{folder.name}-site")


def test_the_cell_struct_is_what_the_lines_hold() -> None:
    assert isinstance(cell("base"), Cell)
