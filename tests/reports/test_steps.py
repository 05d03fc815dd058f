"""Steps are asv's own, never cross an epoch, and are looked for where a series moves; lines keep their extremes."""

from __future__ import annotations

import math
import random
import re

import numpy as np
import pytest

from archbench.reports import steps
from archbench.reports.charts.dense import COLUMNS, dense, thinned


def noisy(rng: random.Random, levels: list[float], each: int, noise: float) -> list[float]:
    return [level * (1 + rng.gauss(0, noise)) for level in levels for _ in range(each)]


@pytest.mark.parametrize("levels", [[1.0], [1.0, 1.3], [1.0, 1.3, 0.8, 0.8, 2.0], [5e-6, 4e-6]])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1])
def test_steps_are_those_of_asv(levels: list[float], noise: float) -> None:
    detection = pytest.importorskip("asv.step_detect", reason="asv is not installed")
    rng = random.Random(f"{levels} {noise}")
    for each in (1, 3, 20, 60):
        values: list[float | None] = list(noisy(rng, levels, each, noise))
        for i in range(len(values)):
            if rng.random() < 0.1:
                values[i] = None
        widths = [rng.choice([0.01, 0.02, math.nan]) for _ in values]
        weights = steps.weights_of(np.zeros(len(values)), np.array(widths))
        theirs = detection.detect_steps(values, [None if math.isnan(w) else w for w in weights.tolist()])
        ours = steps.steps(values, weights)
        assert [step[:2] for step in ours] == [step[:2] for step in theirs]
        assert np.allclose(np.array(ours), np.array(theirs), rtol=1e-12, atol=0)
        assert steps.regressions(ours) == (detection.detect_regressions(theirs, 0.05)[2] or [])


def test_no_step_crosses_an_epoch_and_each_is_found_within_one() -> None:
    rng = random.Random(1)
    values = noisy(rng, [1.0, 1.0, 2.0, 3.0], 20, 0.01)
    epochs = ["torch 1"] * 40 + ["torch 2"] * 40  # the level doubles where torch changed, and moves again within
    found = steps.within_epochs(values, epochs)
    assert all((step.start < 40) == (step.end <= 40) for step in found)
    assert [step.start for step in found] == [0, 40, 60]
    inside = [change.position for change in steps.changes(found) if change.position != 40]
    assert inside == [60]
    assert steps.within_epochs([], []) == []


def test_a_change_is_told_up_or_down_and_noise_is_not() -> None:
    step = steps.Step
    found = [
        step(0, 5, 1.0, 1.0, 0.01),
        step(5, 9, 1.5, 1.4, 0.01),
        step(9, 12, 1.51, 1.5, 0.01),
        step(12, 20, 0.5, 0.5, 0),
    ]
    assert [(c.position, round(c.ratio, 3)) for c in steps.changes(found)] == [(5, 1.5), (12, 0.331)]
    assert steps.changes([step(0, 5, 1.0, 1.0, 0.5), step(5, 9, 1.4, 1.4, 0.5)]) == []


def test_a_large_archive_is_searched_where_it_moves_most(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    series = [noisy(rng, [1.0, 1.2] if i % 5 == 0 else [1.0, 1.0], 50, 0.02) for i in range(40)]
    values, bounds = np.array(series).ravel(), np.arange(0, 4001, 100)
    assert steps.chosen(values, bounds).all()
    monkeypatch.setattr(steps, "ALL", 0)
    monkeypatch.setattr(steps, "LEAST", 800)
    assert np.flatnonzero(steps.chosen(values, bounds)).tolist() == list(range(0, 40, 5))


def test_the_screen_takes_empty_single_and_constant_series() -> None:
    values = np.array([1.0, 2.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0])
    moves = steps.moves(values, np.array([0, 0, 1, 4, 8, 8]))
    assert moves.tolist()[:3] == [0.0, 0.0, 0.0]
    assert moves[3] > 0
    assert steps.moves(np.empty(0), np.array([0])).tolist() == []


def test_a_drift_is_the_split_that_explains_most() -> None:
    rng = random.Random(5)
    found = steps.drift(np.array([*noisy(rng, [2.0], 30, 0.01), math.nan, *noisy(rng, [3.0], 30, 0.01)]))
    assert found is not None
    assert (found.position, round(found.ratio, 1)) == (31, 1.5)
    assert steps.drift(np.array(noisy(rng, [2.0], 60, 0.05))) is None


@pytest.mark.parametrize("count", [1, 7, 120, 121, 700, 1400, 1401])
def test_a_thinned_line_keeps_its_extremes_and_its_ends_near(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    kept = thinned(values)
    assert len(kept) <= 2 * COLUMNS
    assert (np.diff(kept) >= 0).all()
    assert {values.argmin(), values.argmax()} <= set(kept.tolist())
    assert count - 1 - kept[-1] <= count / COLUMNS


def test_a_line_has_no_point_outside_its_picture() -> None:
    drawn = dense(np.array([1e300, math.nan, -1e300, 5.0, 5.0]), 'a "label"', [2])
    points = [tuple(map(float, pair.split(","))) for pair in re.search('points="([^"]*)"', drawn)[1].split()]  # type: ignore[index]
    assert len(points) == 4
    assert all(0 <= x <= 220 and 0 <= y <= 34 for x, y in points)
    assert 'aria-label="a &#34;label&#34;"' in drawn
    assert dense(np.array([1.0]), "", []) == ""
