"""Published results of others: shown with their source, never ranked, and never in the way of what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from archbench.reports.export import as_json
from archbench.reports.imports import import_file
from archbench.reports.rows import load
from archbench.reports.site import render
from results_builder import MACHINE, cell, note, run, write

PAPER = "https://example.org/paper.pdf"
HEAD = "track,case,contender,source,published,items_per_s,peak_bytes,hardware,summary"
CSV = f"""{HEAD}
attention,"GPT, 1.5B parameters",zero_2,{PAPER},2020-02-13,2000,30000000000,"400 V100","Shards gradients, too"
attention,"GPT, 1.5B parameters",zero_3,{PAPER}#3,2020-05-01,1600,,,
"""
ROW = {"track": "attention", "case": "large", "contender": "zero_2", "source": PAPER, "published": "2020-02-13"}


def take(folder: Path, content: object, machine: str = "published-v100") -> Path:
    file = folder / "file"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return import_file("published", file, machine, folder / "results")


def test_a_small_csv_becomes_rows_with_their_source_that_nobody_ranks(tmp_path: Path) -> None:
    take(tmp_path, CSV)
    first, second = load(tmp_path / "results").rows
    assert (first.contender, first.case, first.machine) == ("zero_2", "GPT, 1.5B parameters", "published-v100")
    assert first.metrics["latency_s"].value == 0.0005
    assert first.metrics["peak_bytes"].value == 3e10
    assert (first.origin, first.source, first.rank, first.baseline, first.reproduce) == (
        "imported",
        PAPER,
        None,
        "",
        "",
    )
    assert first.host["hardware"] == "400 V100"
    assert first.host["measured"].startswith("2020-02-13")  # type: ignore[union-attr]
    assert (second.source, second.metrics.keys()) == (f"{PAPER}#3", {"latency_s"})


def test_the_table_of_the_manual_is_one(tmp_path: Path) -> None:
    manual = (Path(__file__).resolve().parents[2] / "docs" / "importing.md").read_text(encoding="utf-8")
    take(tmp_path, manual.partition("```csv\n")[2].partition("```")[0])
    results = load(tmp_path / "results")
    (row,) = results.rows
    assert (row.contender, row.metrics["latency_s"].value) == ("their_pipeline", 0.001)
    assert results.tracks["parallel"].item == "token"


def test_json_is_the_same_as_csv_and_twice_is_once(tmp_path: Path) -> None:
    content = f"{HEAD}\nattention,large,zero_2,{PAPER},2020-02-13,2000,,,\n"
    path = take(tmp_path, content)
    for same in ([ROW | {"items_per_s": 2000}], "\ufeff" + content.replace("\n", "\r\n")):
        assert take(tmp_path, same) == path
    assert len(list((tmp_path / "results").rglob("*.jsonl"))) == 1


def test_they_stand_beside_what_was_measured_and_change_nothing_of_it(tmp_path: Path) -> None:
    measured = [run(), note(), cell("base"), cell("fast", 0.5)]
    write(tmp_path / "results", measured)
    before = load(tmp_path / "results")
    many = [ROW | {"case": f"case {i}", "items_per_s": 5, "published": "2026-11-20"} for i in range(9)]
    take(tmp_path, many, MACHINE)
    take(tmp_path, many)
    after = load(tmp_path / "results")
    assert [row for row in after.rows if row.origin == "measured"] == before.rows
    assert after.tracks == before.tracks  # though the import came later
    assert render(tmp_path / "results", tmp_path / "site").problems == []
    page = (tmp_path / "site" / "track" / "attention.html").read_text()
    measured_part, _, imported_part = page.partition('<h2 id="m2">')
    assert "fast is the fastest of 2 contenders" in measured_part
    assert "zero_2" not in measured_part.partition("<section")[2]
    assert f'<span class="differs">imported</span> <a class="source" href="{PAPER}" rel="noreferrer">' in imported_part
    exported = {row["contender"]: row for row in json.loads(as_json(after))["rows"]}
    assert (exported["zero_2"]["origin"], exported["zero_2"]["source"]) == ("imported", PAPER)
    assert (exported["fast"]["origin"], exported["fast"]["source"]) == ("measured", "")


def test_a_source_that_is_no_address_is_no_link(tmp_path: Path) -> None:
    for source in (
        "javascript:alert(1)",
        'https://x.org/"onclick=alert(1)',
        "https://x.org/ y",
        "https:///" + "x" * 2000,
        7,
    ):
        imported = run(identity="20260102T030405Z-aaaaaa", environment="imported from published")
        write(tmp_path, [imported, note(), cell("base", host={"source": source})])
        (row,) = load(tmp_path).rows
        assert (row.origin, row.source) == ("imported", "")


def changed(**changes: Any) -> list[dict[str, Any]]:
    return [ROW | {"items_per_s": 5} | changes]


BAD: dict[str, tuple[object, str]] = {
    "empty": ("", "no results"),
    "a head alone": (HEAD, "no results"),
    "no list": ({"rows": []}, "a list of objects"),
    "not UTF-8": (CSV.encode("utf-16"), "UTF-8"),
    "a NUL": (CSV.replace("zero_2", "ze\0ro"), "line contains NUL|not usable"),
    "an open quote": (CSV + '"', "unexpected end"),
    "too few cells": (f"{HEAD}\nattention,large\n", "result 1 has 2 cells, the head has 9"),
    "one name twice": (HEAD + ",track", "two columns"),
    "no source": (changed(source=" "), "result 1 has no source"),
    "a script for a source": (changed(source="javascript:alert(1)"), "no web address"),
    "a path for a source": (changed(source="/etc/passwd"), "no web address"),
    "no date": (changed(published="soon"), "not an ISO 8601 date"),
    "a date of another century": (changed(published="1920-01-01"), "not in this century"),
    "a date to come": (changed(published="2099-01-01"), "published 2099-01-01, which is to come"),
    "a column nobody knows": (changed(slowdown=0.5), "column 'slowdown': known are track"),
    "a hidden column": (changed(**{"peak\u202e_bytes": 1}), "column"),
    "no number": ([ROW], "has no number"),
    "a word for a number": (changed(items_per_s="fast"), "not a number"),
    "NaN": (changed(items_per_s="nan"), "not a number"),
    "endless": (changed(peak_bytes="1e999"), "not a number"),
    "a truth for a number": (changed(peak_bytes=True), "not a number"),
    "a huge integer": (changed(peak_bytes=10**400), "not a number"),
    "none a second": (changed(items_per_s=0), "not a number"),
    "a negative size": (changed(peak_bytes=-1), "cannot be negative"),
    "a nested number": (changed(peak_bytes=[1]), "no text and no number"),
    "both rate and time": (changed(latency_s=0.2), "one follows from the other"),
    "twice": (changed() * 2, "is there twice"),
    "two tracks": ([*changed(), *changed(track="norm")], "several tracks"),
    "two items": ([*changed(), *changed(contender="x", item="token")], "several tracks, or times per different items"),
    "a track outside": (changed(track="../../etc"), "not a usable track name"),
    "bidi in a contender": (changed(contender="zero\u202e"), "not usable"),
    "more than anybody publishes": ([changed(case=str(i))[0] for i in range(2001)], "2001 results, more than 2000"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_table_that_cannot_be_is_a_sentence_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    content, sentence = BAD[kind]
    with pytest.raises(ValueError, match=sentence):
        take(tmp_path, content)
    assert not (tmp_path / "results").exists()


def test_markup_in_a_table_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    take(tmp_path, changed(contender=evil, case=evil, summary=evil, hardware=evil, source=f"{PAPER}?'&x=1"))
    assert render(tmp_path / "results", tmp_path / "site").problems == []
    for page in (tmp_path / "site").rglob("*.html"):
        assert evil not in page.read_text(), page
