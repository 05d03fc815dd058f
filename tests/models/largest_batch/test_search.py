"""The search as a function of answers: it ends at the edge, in few trials, and noise moves it by one step at most."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archbench.models.largest_batch._search import largest, line

STEPS = st.integers(1, 16)
MOST = 5000


class Edge:
    """Answers like memory: up to the edge it fits. Remembers what it was asked."""

    def __init__(self, edge: int) -> None:
        self.edge = edge
        self.asked: list[int] = []

    def __call__(self, batch: int) -> bool:
        self.asked.append(batch)
        return batch <= self.edge


@given(STEPS, st.integers(0, MOST), st.integers(-MOST, 3 * MOST))
def test_it_ends_at_the_edge_and_asks_nothing_twice(step: int, edge: int, guess: int) -> None:
    fits = Edge(edge * step)
    assert largest(fits, guess, step, 0, (MOST + 1) * step) == edge * step
    assert all(batch % step == 0 and 0 < batch <= MOST * step for batch in fits.asked)
    assert len(set(fits.asked)) == len(fits.asked)
    assert edge == 0 or edge * step in fits.asked, "what it returns was tried"
    assert edge == MOST or (edge + 1) * step in fits.asked, "and so was one step more"


@given(STEPS, st.integers(1, MOST), st.integers(-200, 200))
def test_a_guess_that_is_near_costs_few_trials(step: int, edge: int, off: int) -> None:
    fits = Edge(edge * step)
    largest(fits, (edge + off) * step, step, 0, (MOST + 1) * step)
    assert len(fits.asked) <= 2 * math.ceil(math.log2(abs(off) + 1)) + 2


@given(st.integers(0, MOST), st.integers(0, MOST), st.integers(0, MOST))
def test_it_stays_between_what_is_known(low: int, edge: int, high: int) -> None:
    low, edge, high = sorted((low, edge, high))
    fits = Edge(edge)
    assert largest(fits, edge, 1, low, high) == min(edge, max(high - 1, low))
    assert all(low < batch < high for batch in fits.asked)


@given(st.integers(3, MOST - 3), st.integers(-200, 200), st.randoms(use_true_random=False))
def test_answers_that_waver_at_the_edge_move_the_end_by_a_step(edge: int, off: int, chance: object) -> None:
    def fits(batch: int) -> bool:
        return batch < edge or (batch == edge and bool(chance.random() < 0.5))  # type: ignore[attr-defined]

    ends = {largest(fits, edge + off, 1, 0, MOST + 1) for _ in range(3)}
    assert ends <= {edge - 1, edge}


@given(st.floats(-1e3, 1e3), st.floats(-1e6, 1e6), st.sets(st.integers(1, 1000), min_size=2, max_size=8))
def test_the_line_through_points_of_a_line_is_that_line(slope: float, fixed: float, batches: set[int]) -> None:
    found = line({batch: fixed + slope * batch for batch in batches})
    assert found == pytest.approx((slope, fixed), rel=1e-6, abs=1e-3)
