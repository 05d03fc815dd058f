"""Proofs of signed deliveries: what the board shows of them, what a merge keeps, what a forger cannot do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from archbench.reports.export import as_json
from archbench.reports.merge import Conflict, merge
from archbench.reports.rows import load
from archbench.reports.site import render
from results_builder import MACHINE, cell, note, run, write

IDENTITY = "20260102T030405Z-aaaaaa"
KEY = "SHA256:" + "k" * 43


def proof(file: Path, /, **changes: str) -> dict[str, str]:
    """What a collector writes of a run file."""
    found = {
        "record": "proof",
        "collected": "2026-01-03T00:00:00+00:00",
        "commit": "c" * 40,
        "file": f"cells/{file.name}",
        "key": KEY,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "signer": MACHINE,
    }
    return found | changes


def keep(folder: Path, *proofs: dict[str, Any]) -> Path:
    path = folder / MACHINE / "verified.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(found) + "\n" for found in proofs))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "results", [run(identity=IDENTITY), note(), cell("base"), cell("fast", 0.5)])


def test_rows_of_a_signed_run_say_so_everywhere(file: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    write(results, [run(identity="20260103T030405Z-bbbbbb"), note(), cell("slow", 2.0)])
    keep(results, proof(file))
    found = load(results)
    assert found.problems == []
    assert {row.contender for row in found.rows if row.verified} == {"base", "fast"}
    rows = {row["contender"]: row["verified"] for row in json.loads(as_json(found))["rows"]}
    told = {"signer": MACHINE, "key": KEY, "commit": "c" * 40, "collected": "2026-01-03T00:00:00+00:00"}
    assert rows == {"base": told, "fast": told, "slow": None}
    render(results, tmp_path / "site")
    assert f"signed by {MACHINE}" in (tmp_path / "site" / "track" / "attention.html").read_text()
    machine = (tmp_path / "site" / "machine" / f"{MACHINE}.html").read_text()
    assert f"signed by {MACHINE}: key <code>{KEY}</code>" in machine
    assert machine.count("signed by") == 1  # of two runs


def test_a_board_without_proofs_speaks_of_none(file: Path, tmp_path: Path) -> None:
    render(tmp_path / "results", tmp_path / "site")
    assert "signed by" not in (tmp_path / "site" / "track" / "attention.html").read_text()
    assert "Signed" not in (tmp_path / "site" / "machine" / f"{MACHINE}.html").read_text()


def test_a_run_file_that_was_changed_afterwards_is_named_and_loses_its_mark(file: Path, tmp_path: Path) -> None:
    keep(tmp_path / "results", proof(file))
    file.write_bytes(file.read_bytes().replace(b'"load1":0.5', b'"load1":0.1'))
    found = load(tmp_path / "results")
    assert [row.verified for row in found.rows] == [None, None]
    (problem,) = found.problems
    assert problem.path == f"{MACHINE}/cells/{IDENTITY}.jsonl"
    assert "it was changed afterwards" in problem.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"signer": "pi-4"}, "line 1 is signed by 'pi-4' and lies in the folder of 'amd-epyc-zen4-2c'"),
        ({"file": "../other/cells/x.jsonl"}, "line 1 is no proof"),
        ({"file": "cells/../x.jsonl"}, "line 1 is no proof"),
        ({"sha256": "0"}, "line 1 is no proof"),
        ({"key": "<b>"}, "line 1 is no proof"),
        ({"commit": "HEAD"}, "line 1 is no proof"),
        ({"collected": "yesterday"}, "line 1 is no proof"),
        ({"extra": "1"}, "line 1 is no proof"),
        ({"record": "cell"}, "line 1 is no proof"),
    ],
)
def test_a_proof_that_is_none_is_named_and_proves_nothing(
    changes: dict[str, str], reason: str, file: Path, tmp_path: Path
) -> None:
    keep(tmp_path / "results", proof(file, **changes))
    found = load(tmp_path / "results")
    assert [row.verified for row in found.rows] == [None, None]
    assert [(p.path, p.reason[: len(reason)]) for p in found.problems] == [(f"{MACHINE}/verified.jsonl", reason)]


def test_proofs_lie_in_machines_folders_only(file: Path, tmp_path: Path) -> None:
    (tmp_path / "results" / "verified.jsonl").write_text("{}\n")
    assert [(p.path, p.reason) for p in load(tmp_path / "results").problems] == [
        ("verified.jsonl", "not a file of a results folder")
    ]


def test_merging_proofs_is_their_union_with_the_earlier_date(file: Path, tmp_path: Path) -> None:
    early = proof(file, collected="2026-01-03T00:00:00+00:00")
    late = proof(file, collected="2026-01-04T00:00:00+00:00")
    other = proof(file, file="cells/other.jsonl", collected="2026-01-02T00:00:00+00:00")
    for name, proofs in (("a", [late]), ("b", [early, other]), ("c", [other])):
        keep(tmp_path / name, *proofs)
    results = []
    for order in ("abc", "cba", "bca", "abcabc"):
        into = tmp_path / order
        for name in order:
            merge([tmp_path / name], into)
        results.append((into / MACHINE / "verified.jsonl").read_bytes())
    assert len(set(results)) == 1
    kept = [json.loads(line) for line in results[0].splitlines()]
    assert [(found["file"], found["collected"][:10]) for found in kept] == [
        ("cells/other.jsonl", "2026-01-02"),
        (f"cells/{IDENTITY}.jsonl", "2026-01-03"),
    ]


def test_a_merge_never_puts_proofs_into_a_file_that_holds_something_else(file: Path, tmp_path: Path) -> None:
    broken = keep(tmp_path / "results", proof(file, signer="pi-4"))
    before = broken.read_bytes()
    keep(tmp_path / "more", proof(file))
    with pytest.raises(Conflict, match=r"verified\.jsonl is not readable"):
        merge([tmp_path / "more"], tmp_path / "results")
    assert broken.read_bytes() == before
