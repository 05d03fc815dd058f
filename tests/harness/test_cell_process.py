"""What comes back from a cell's process is its cell, or the cell is crashed: once, and in the run's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archbench.cells import Cell, Started, decode, encode
from archbench.harness import suite as suites
from archbench.harness.isolate import Died
from archbench.harness.session import Session, append
from archbench.harness.suite import Suite

CASE = "b1-h4-len128-d64-fp32-fwd"
HEADER = b'{"record":"run","schema":1,"run":"r","machine":"m","commit":"c","dirty":false,"started":""}'


class Attention(Suite):
    track = "attention"


@pytest.fixture
def session(tmp_path: Path) -> Session:
    (tmp_path / "run.jsonl").touch()
    return Session(str(tmp_path / "run.jsonl"), decode(HEADER), "cpu", 1, 1 << 34, 0, str(tmp_path))  # type: ignore[arg-type]


def cell(**fields: str) -> bytes:
    given = {"track": "attention", "case": CASE, "contender": "naive", "baseline": "torch_sdpa", "status": "ok"}
    return encode(Cell(**(given | fields)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answer",
    [b"\xff", b"{}", HEADER, cell(track="norm"), cell(case="b1"), cell(contender="torch_sdpa")],
    ids=["bytes", "no record", "another record", "another track", "another case", "another contender"],
)
def test_an_answer_that_is_not_this_cell_is_a_crash(
    session: Session, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(suites, "run_isolated", lambda work, deadline_s: answer)
    suite = Attention()
    suite.setup(session, CASE, "naive")
    assert (suite.cell.status, suite.cell.reason[:13]) == ("crashed", "its process a")
    last = decode(Path(session.path).read_bytes().splitlines()[-1])
    assert last == suite.cell


def test_a_cell_whose_process_took_ours_with_it_is_not_measured_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(session.path)
    append(path, Started(track="attention", case=CASE, contender="naive", baseline="torch_sdpa"))
    append(path, Started(track="attention", case="other", contender="naive", baseline="torch_sdpa"))
    measured = []
    monkeypatch.setattr(
        suites, "run_isolated", lambda work, deadline_s: measured.append(1) or Died("timeout", "too long")
    )
    for _ in range(3):
        suite = Attention()
        suite.setup(session, CASE, "naive")
        assert (suite.cell.status, "took ours with it" in suite.cell.reason) == ("crashed", True)
    assert measured == []
    records = [json.loads(line)["record"] for line in path.read_bytes().splitlines()]
    assert records.count("cell") == 1
    Attention().setup(session, CASE, "sdpa_math")
    assert measured == [1]
