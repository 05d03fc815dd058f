"""The statistics keep their promises: coverage, A/A honesty, power, ties."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Iterator
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archbench.hardware.clock import fight
from archbench.hardware.timers import Inputs, Sample
from archbench.stats import (
    Interval,
    apart,
    control_log_ratios,
    geometric_mean,
    hodges_lehmann,
    log_ratios,
    mean_interval,
    median_interval,
)
from archbench.track import Call, Timing


class SimulatedTimer:
    """A host with heavy-tailed noise: common drift, 2 % jitter, and one sample in ten hit by an interruption."""

    def __init__(self, seconds: dict[str, float], rng: random.Random, jitter: float, tails: bool) -> None:
        self.seconds, self.rng, self.jitter, self.tails = seconds, rng, jitter, tails
        self.drift = 0.0

    def sample(self, call: Call, batch: list[Inputs]) -> Sample:
        self.drift = 0.9 * self.drift + self.rng.gauss(0, 0.1)  # the machine as a whole gets slower and faster
        noise = self.rng.gauss(0, self.jitter)
        if self.tails and self.rng.random() < 0.1:
            noise += self.rng.paretovariate(1.5) * 0.1
        seconds = self.seconds[call.__name__] * math.exp(noise + 0.05 * self.drift)
        return Sample(seconds * len(batch), seconds, 0.0, None)


def contender() -> None: ...


def baseline() -> None: ...


@pytest.fixture(autouse=True, scope="module")
def without_what_other_tests_left() -> Iterator[None]:
    """The clock collects garbage before each of the thousand duels: what the tests before made is not looked at."""
    gc.freeze()
    yield
    gc.unfreeze()


def duel(ratio: float, rng: random.Random, *, jitter: float = 0.02, tails: bool) -> tuple[Interval, float]:
    """A simulated duel on the real clock: the log ratio and the A/A band of the same blocks."""
    timer = SimulatedTimer({"contender": 0.01 * ratio, "baseline": 0.01}, rng, jitter, tails)
    ticks = iter(range(10**9))
    blocks, _ = fight(contender, baseline, [()], timer, Timing(budget_s=60), rng=rng, now=lambda: float(next(ticks)))
    return hodges_lehmann(log_ratios(blocks)), abs(hodges_lehmann(control_log_ratios(blocks)).value)


def ranked_apart(ratio: float, rng: random.Random, **noise: bool) -> bool:
    """Whether the board would rank a contender apart from the baseline: two duels, one of them A/A."""
    challenger, band_1 = duel(ratio, rng, **noise)
    control, band_2 = duel(1.0, rng, **noise)
    return apart(challenger, control, max(band_1, band_2))


def test_aa_duels_with_heavy_tails_are_ranked_apart_at_most_5_percent_of_the_time() -> None:
    rng = random.Random(1)
    found = sum(ranked_apart(1.0, rng, tails=True) for _ in range(200))
    assert found <= 10


def test_a_true_5_percent_gap_under_2_percent_noise_is_found_in_at_least_90_percent() -> None:
    rng = random.Random(2)
    found = sum(ranked_apart(1.05, rng, tails=False) for _ in range(200))
    assert found >= 180


@pytest.mark.parametrize("n", [10, 25, 70])
def test_the_hodges_lehmann_interval_covers_at_least_94_percent_of_heavy_tailed_samples(n: int) -> None:
    rng = np.random.default_rng(n)
    intervals = [hodges_lehmann(rng.standard_t(2, n)) for _ in range(1500)]
    covered = sum(i.lo <= 0 <= i.hi for i in intervals) / len(intervals)
    assert 0.935 <= covered <= 0.985  # 95 % nominal; 1500 draws have a standard error of 0.6 %


def test_hodges_lehmann_is_the_median_of_all_pairwise_means() -> None:
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6]
    means = sorted((a + b) / 2 for a, b in combinations_with_replacement(values, 2))
    assert hodges_lehmann(values).value == pytest.approx(np.median(means))


def test_the_signed_rank_interval_matches_the_published_table() -> None:
    # Hollander, Wolfe & Chicken, table A.4: n = 10 has P(W+ <= 8) = 0.024, so the 9th and 47th of 55 Walsh averages.
    values = np.random.default_rng(0).normal(size=10)
    walsh = sorted((a + b) / 2 for a, b in combinations_with_replacement(values.tolist(), 2))
    interval = hodges_lehmann(values)
    assert (interval.lo, interval.hi) == pytest.approx((walsh[8], walsh[46]))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_intervals_hold_their_estimate_and_stay_within_the_sample(values: list[float]) -> None:
    for interval in (hodges_lehmann(values), median_interval(values)):
        assert min(values) - 1e-6 <= interval.lo <= interval.value + 1e-9
        assert interval.value - 1e-9 <= interval.hi <= max(values) + 1e-6


@pytest.mark.parametrize("bad", [[], [math.nan], [1.0, math.inf]])
def test_empty_and_non_finite_samples_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        hodges_lehmann(bad)
    with pytest.raises(ValueError, match="finite"):
        median_interval(bad)


def test_a_difference_inside_the_aa_band_is_a_tie_however_narrow_the_intervals() -> None:
    a, b = Interval(0.00, -0.001, 0.001, 50), Interval(0.02, 0.019, 0.021, 50)
    assert apart(a, b, band=0.01)
    assert not apart(a, b, band=0.03)


def test_the_geometric_mean_of_ratios_is_their_mean_in_logs_and_repeats_exactly() -> None:
    cases = [Interval(math.log(r), math.log(r) - 0.01, math.log(r) + 0.01, 20) for r in (0.5, 2.0, 1.0)]
    mean = geometric_mean(cases)
    assert mean.exp().value == pytest.approx(1.0)
    assert mean.lo < 0 < mean.hi
    assert mean == geometric_mean(cases)


@pytest.mark.parametrize(("freedom", "cut"), [(1, 12.706205), (2, 4.302653), (4, 2.776445), (9, 2.262157)])
def test_the_mean_has_students_interval(freedom: int, cut: float) -> None:
    values = [0.0] * freedom + [1.0]
    n = freedom + 1
    deviation = math.sqrt((1 / n) * (1 - 1 / n) * n / freedom)
    found = mean_interval(values)
    assert found.value == pytest.approx(1 / n)
    assert found.halfwidth == pytest.approx(cut * deviation / math.sqrt(n), rel=1e-5)


def test_one_value_is_a_mean_without_spread() -> None:
    assert mean_interval([2.0]) == Interval(2.0, 2.0, 2.0, 1)
