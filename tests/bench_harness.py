"""What the paired clock costs: a no-op under our clock and under pytest-benchmark, in the same process.

Run alone, by ``nox -s bench_harness``: it is a benchmark, not a test, and no part of the test suite.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from archbench.hardware.clock import fight
from archbench.hardware.timers import CpuTimer
from archbench.track import Timing

ALLOWED_S = 2e-6
FOUND: dict[str, float] = {}


def no_op() -> None: ...


def test_pytest_benchmark_on_a_no_op(benchmark: Any) -> None:
    benchmark(no_op)
    FOUND["pytest-benchmark"] = benchmark.stats.stats.median


def test_paired_clock_on_a_no_op(benchmark: Any) -> None:
    def overhead() -> float:
        duel, _ = fight(no_op, no_op, [()], CpuTimer(), Timing(min_blocks=30, max_blocks=30))
        return median(duel.contender_s)

    FOUND["paired clock"] = benchmark.pedantic(overhead, rounds=1)


def test_the_paired_clock_costs_at_most_2_microseconds_and_less_than_pytest_benchmark() -> None:
    print("\n" + "\n".join(f"{name}: {seconds * 1e9:.1f} ns a call" for name, seconds in FOUND.items()))
    assert FOUND["paired clock"] <= ALLOWED_S
    assert FOUND["paired clock"] < FOUND["pytest-benchmark"]
