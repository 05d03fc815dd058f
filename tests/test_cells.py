"""Records: what goes in comes out, and what JSON cannot hold stays out."""

from __future__ import annotations

import math

import msgspec
import pytest

from archbench.cells import Cell, Duel, Metric, Started, decode, encode


def cell(**changes: object) -> Cell:
    fields: dict[str, object] = {
        "track": "attention",
        "case": "b1",
        "contender": "naive",
        "baseline": "torch_sdpa",
        "status": "ok",
        "metrics": {"latency_s": Metric(0.5, "s", (0.4, 0.6), 12)},
        "duel": Duel([1.0], [1.0], [1.0]),
        "host": {"load1": 0.5, "threads": 2},
    }
    return Cell(**(fields | changes))


def test_records_survive_the_round_trip() -> None:
    for record in (cell(), Started("attention", "b1", "naive")):
        assert decode(encode(record)) == record


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_json_does_not_have_is_refused_by_name(bad: float) -> None:
    with pytest.raises(ValueError, match=r"Cell\.metrics\.latency_s\.value"):
        encode(cell(metrics={"latency_s": Metric(bad, "s")}))
    with pytest.raises(ValueError, match=r"contender_s\[0\]"):
        encode(cell(duel=Duel([bad], [1.0], [1.0])))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b'{"record": "cell"}',
        encode(cell()).replace(b'"ok"', b'"fine"'),
        b'{"record": "cell", "x": NaN}',
    ],
)
def test_what_is_not_a_record_is_a_decode_error(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(line)
