"""Calls of several items, data that is not drawn, passes over the same bytes, and a contender alone in its process."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from archbench.cells import Ceiling, Cell, ContenderNote, Data
from archbench.checks import Wrong
from archbench.discovery import Loaded, load_contender, load_track
from archbench.harness import fresh, measure
from archbench.harness.physics import floor
from archbench.reports.meaning import check_cell
from archbench.track import Contender, Track
from toy_track import PLACE, TRACK, ToyCase

ITEMS = 8
PIXELS = Data("pixels", "made for this test", "0123456789abcdef")


def slow(x: Any) -> Any:
    time.sleep(0.004)
    return 2 * x


def cell(monkeypatch: pytest.MonkeyPatch, case: ToyCase | None = None, **changes: Any) -> Cell:
    track: Track[Any] = replace(TRACK, **changes)
    loaded = Loaded("toy", "honest", "toy", Contender(build=lambda case: slow), "ok", "", ContenderNote())
    monkeypatch.setattr(measure, "load_contender", lambda track, contender: loaded)
    bench = measure.Bench(PLACE, (Ceiling("matrix", 1e9, "op/s", dtype="fp64"),), cache_bytes=1 << 16)
    return measure.measure_cell(track, case or ToyCase(), "honest", bench)


def test_times_are_per_item_and_ratios_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    case = ToyCase(work=1e6)  # a quarter of what the ceiling allows in the time of a call
    alone, several = cell(monkeypatch, case), cell(monkeypatch, case, items=lambda case: ITEMS)
    assert alone.status == several.status == "ok", (alone.reason, several.reason)
    assert alone.duel is not None
    assert several.duel is not None
    assert alone.metrics["latency_s"].value >= 0.004
    assert several.metrics["latency_s"].value >= 0.004 / ITEMS
    assert min(several.duel.contender_s) < min(alone.duel.contender_s) / 2
    assert several.metrics["slowdown"].value == pytest.approx(1, rel=0.5)
    for found, items in ((alone, 1), (several, ITEMS)):
        assert found.limit_fraction == pytest.approx(1e-3 / (found.metrics["latency_s"].value * items))


def test_what_a_case_is_measured_on_stands_in_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cell(monkeypatch, data=lambda case: PIXELS).data == PIXELS
    assert cell(monkeypatch).data is None


class Moving(ToyCase):
    def flops(self) -> None:
        return None

    def bytes_moved(self) -> float:
        return 4000.0


def test_wider_units_are_no_limit_where_a_dtypes_own_are_unknown() -> None:
    """An int8 product may be four times as fast as an fp32 one: beside fp32 alone nothing is known of it."""
    case = replace(ToyCase(work=1e9))
    ceilings = [Ceiling("matrix", 1e9, "op/s", dtype="fp64"), Ceiling("matrix", 2e9, "op/s", dtype="fp32")]
    assert floor(case, ceilings, 0) is not None
    object.__setattr__(case, "dtype", "int8")
    assert floor(case, ceilings, 0) is None
    with_its_own = floor(case, [*ceilings, Ceiling("matrix", 1e8, "op/s", dtype="int8")], 0)
    assert with_its_own is not None
    assert with_its_own.seconds == 0.5, "the fastest unit that loses nothing"


@pytest.mark.parametrize(
    ("rereads", "cache_bytes", "seconds"),
    [
        (0, 3999, 4.0),  # every byte once
        (0, 4000, None),  # all of it may be in the cache
        (1, 3000, 1.0),  # the call before has left 3000 bytes there
        (4, 500, 2.0),  # four passes over 1000 bytes, half of them there each time
        (4, 1000, None),
    ],
)
def test_a_pass_finds_a_cache_full_of_the_one_before(rereads: int, cache_bytes: int, seconds: float | None) -> None:
    found = floor(Moving(), [Ceiling("read", 1000.0, "B/s")], cache_bytes, rereads)
    assert (found and found.seconds) == seconds


def asked(contender: str) -> Any:
    track = load_track("attention")
    case = track.test_cases[0]
    return measure.examiner(track, case, load_contender("attention", contender), PLACE)


def test_a_contender_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="the contender asked here needs torch")
    monkeypatch.setattr(fresh, "PROCESSES", 2)
    found = fresh.load(asked("naive"))
    assert {name: metric.unit for name, metric in found.metrics.items()} == {
        "load_s": "s",
        "first_answer_s": "s",
        "resident_bytes": "B",
    }
    assert all(len(kept) == 2 for kept in found.samples.values())
    row = cell(monkeypatch)
    check_cell(
        msgspec.structs.replace(row, metrics=row.metrics | found.metrics, samples=found.samples)
    )  # readers take it
    assert 0 < found.metrics["load_s"].value < found.metrics["first_answer_s"].value
    assert found.metrics["resident_bytes"].value > 50e6  # an interpreter with torch


def test_a_contender_that_answers_only_in_company(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="the contender asked here needs torch")
    with pytest.raises(Wrong, match=r"gives no answer in a process of its own: .*no_such"):
        fresh.load(replace(asked("naive"), name="no_such"))
