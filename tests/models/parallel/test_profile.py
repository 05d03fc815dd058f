"""Intervals that are added and taken away, and how much of a call communication was waited for."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the profiler is torch's")

from archbench.models._profile import CALL
from archbench.models.parallel._measures.profile import call_and_exposed, joined, length, union, within, without

MOMENTS = st.integers(0, 30)
SOME = st.lists(st.tuples(MOMENTS, MOMENTS).map(lambda ends: (min(ends), max(ends) + 1)), max_size=8)


def covered(intervals: list[tuple[int, int]]) -> set[int]:
    return {second for start, stop in intervals for second in range(start, stop)}


@given(SOME, SOME)
def test_intervals_are_sets_of_seconds(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    one, other = union(some), union(others)
    assert length(one) == len(covered(some))
    assert all(earlier[1] < later[0] for earlier, later in pairwise(one))
    assert length(without(one, other)) == len(covered(some) - covered(others))
    assert length(within(one, (5, 20))) == len(covered(some) & set(range(5, 20)))


def test_short_pauses_are_closed_and_long_ones_stay() -> None:
    assert joined([(0.0, 1.0), (1.5, 2.0), (4.0, 5.0)], 1.0) == [(0.0, 2.0), (4.0, 5.0)]


def lasting(name: str, start_ms: float, stop_ms: float, cat: str = "cpu_op", tid: int = 1) -> dict[str, Any]:
    start, duration = start_ms * 1e3, (stop_ms - start_ms) * 1e3
    return {"ph": "X", "cat": cat, "name": name, "tid": tid, "ts": start, "dur": duration, "args": {}}


@pytest.mark.parametrize(
    ("events", "exposed_ms"),
    [
        ([lasting("aten::addmm", 0, 100)], 0),
        ([lasting("aten::addmm", 0, 60), lasting("gloo:all_reduce", 40, 90, "user_annotation", 2)], 30),
        # Talk that goes on all the time is exposed where nothing is computed, but not in the interpreter's pauses.
        (
            [
                lasting("aten::mm", 0, 20),
                lasting("aten::mm", 20.05, 50),
                lasting("gloo:recv", 0, 70, "user_annotation", 2),
            ],
            20,
        ),
        # An operation that contains a wait computes before and after it.
        (
            [
                lasting("aten::addmm", 0, 100),
                lasting("_c10d_functional::wait_tensor", 30, 40),
                lasting("gloo:all_reduce", 10, 40, "user_annotation", 2),
            ],
            10,
        ),
        # What another thread computes is not this one's computing; what lies outside of the call does not count.
        ([lasting("aten::div_", 0, 100, tid=2), lasting("gloo:all_reduce", 80, 140, "user_annotation", 2)], 20),
        # A GPU's kernels, whatever the thread that started them does meanwhile.
        (
            [
                lasting("aten::mm", 0, 100),
                lasting("sm90_gemm", 0, 50, "kernel", 7),
                lasting("ncclDevKernel_AllReduce_Sum_f32", 30, 75, "kernel", 8),
            ],
            25,
        ),
    ],
)
def test_exposed_communication(events: list[dict[str, Any]], exposed_ms: float) -> None:
    call, exposed = call_and_exposed([lasting(CALL, 0, 100, "user_annotation"), *events])
    assert call == pytest.approx(0.1)
    assert exposed == pytest.approx(exposed_ms / 1e3)
