"""Training cells: runs over seeds become metrics with intervals, curves and the samples behind them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from archbench.cells import Cell, ContenderNote, Data, decode, encode
from archbench.checks import Wrong
from archbench.discovery import Loaded
from archbench.harness import measure
from archbench.harness.study import mean_curve, summary
from archbench.track import Contender, Device, Track
from archbench.training import Outcome
from toy_track import PLACE, TRACK, ToyCase

PIXELS = Data("pixels", "made for this test", "0123456789abcdef")


@dataclass(frozen=True)
class TrainingCase(ToyCase):
    seeds: int = 3


class Doubling:
    """A "model" whose step doubles its input and whose runs are what the test says."""

    def __init__(self, step: Callable[..., Any], run: Callable[[int], Outcome] | None = None) -> None:
        self.step = step
        self.outcome = run or (lambda seed: Outcome({"test_error": 0.1 + 0.01 * seed}, {"loss": [(0, 2.0), (9, seed)]}))

    def __call__(self, *batch: Any) -> Any:
        return self.step(*batch)

    def run(self, seed: int, device: Device) -> Outcome:
        assert device == "cpu"
        return self.outcome(seed)

    def data(self) -> Data:
        return PIXELS


def cell(monkeypatch: pytest.MonkeyPatch, run: Callable[[int], Outcome] | None = None, seeds: int = 3) -> Cell:
    track: Track[Any] = replace(
        TRACK, protocol="training", quality="test_error", workload=lambda case, build: Doubling(build, run)
    )
    entry: Contender[Any] = Contender(build=lambda case: lambda x: 2 * np.asarray(x))
    loaded = Loaded("toy", "honest", "toy", entry, "ok", "", ContenderNote())
    monkeypatch.setattr(measure, "load_contender", lambda track, contender: loaded)
    bench = measure.Bench(PLACE, (), cache_bytes=1 << 16)
    found = measure.measure_cell(track, TrainingCase(seeds=seeds), "honest", bench)
    again = decode(encode(found))
    assert again == found
    return found


def test_a_training_cell_has_the_steps_time_and_the_runs_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cell(monkeypatch)
    assert found.status == "ok", found.reason
    assert found.duel is not None
    assert found.metrics["latency_s"].value > 0
    error = found.metrics["test_error"]
    assert error.value == pytest.approx(0.11)
    half = 4.302653 * 0.01 / math.sqrt(3)  # Student's t, two degrees of freedom
    assert error.ci == pytest.approx((0.11 - half, 0.11 + half))
    assert error.n == 3
    assert found.samples == {"test_error": [0.1, 0.1 + 0.01, 0.1 + 0.01 * 2]}
    assert found.series == {"loss": [(0.0, 2.0), (9.0, 1.0)]}
    assert found.data == PIXELS


def test_one_seed_has_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cell(monkeypatch, seeds=1).metrics["test_error"].ci is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_wrong(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    found = cell(monkeypatch, lambda seed: Outcome({"test_error": value}))
    assert (found.status, found.reason) == ("wrong", f"a training run reports test_error as {value}")
    assert not found.metrics


def test_a_run_that_breaks_is_a_crash_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(seed: int) -> Outcome:
        raise RuntimeError("no batch of size 64")

    found = cell(monkeypatch, broken)
    assert found.status == "crashed"
    assert "no batch of size 64" in found.reason


def test_the_quality_must_be_there() -> None:
    with pytest.raises(Wrong, match="reports no test_error"):
        summary([Outcome({"test_error": 0.1}), Outcome({"loss": 1.0})], "test_error")


def test_what_a_run_does_not_reach_is_left_out_of_the_mean() -> None:
    found = summary([Outcome({"seconds_to_target_s": 4.0}), Outcome({}), Outcome({"seconds_to_target_s": 9.0})], "")
    metric = found.metrics["seconds_to_target_s"]
    assert metric.value == pytest.approx(6.0)  # geometric: a time is positive, and so is its interval
    assert metric.ci is not None
    assert 0 < metric.ci[0] < 6 < metric.ci[1]
    assert (metric.unit, metric.n) == ("s", 2)
    assert found.samples == {"seconds_to_target_s": [4.0, None, 9.0]}


def test_a_mean_curve_has_the_steps_all_have_and_ends_where_one_is_not_finite() -> None:
    assert mean_curve([[(0, 1.0), (1, 2.0), (2, 3.0)], [(0, 3.0), (2, math.nan), (3, 1.0)]]) == [(0.0, 2.0)]
