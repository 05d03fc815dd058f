"""Every cheat loses: the right status, a reason a reader understands, and never a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archbench.cells import Ceiling, ContenderNote, Duel, encode
from archbench.checks import Wrong
from archbench.discovery import Loaded
from archbench.hardware import timers
from archbench.harness import measure, protocols
from archbench.track import Contender, Unavailable
from toy_track import PLACE, TRACK, ToyCase, honest, measured


def no_op(case: ToyCase) -> Callable[..., Any]:
    return lambda x: None


def input_returned(case: ToyCase) -> Callable[..., Any]:
    return lambda x: x


def mutator(case: ToyCase) -> Callable[..., Any]:
    def call(x: Any) -> Any:
        x *= 2
        return x.copy()

    return call


def cached_by_identity(case: ToyCase) -> Callable[..., Any]:
    answers: dict[int, Any] = {}

    def call(x: Any) -> Any:
        return answers.setdefault(x.__array_interface__["data"][0], 2 * x)

    return call


def first_answer_for_ever(case: ToyCase) -> Callable[..., Any]:
    answers: list[Any] = []

    def call(x: Any) -> Any:
        answers.append(2 * x)
        return answers[0]

    return call


def honest_until_it_is_timed(case: ToyCase) -> Callable[..., Any]:
    """Right for the gate's two questions, then from memory, by content: only the audited sample can see it."""
    seen = 0
    memory: list[Any] = []

    def call(x: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen <= 3:
            memory[:] = [2 * x]
            return 2 * x
        return memory[0]

    return call


def lazy(case: ToyCase) -> Callable[..., Any]:
    class Promise:
        def __init__(self, x: Any) -> None:
            self.x = x

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return 2 * self.x

    return Promise


def fills_in_later(case: ToyCase) -> Callable[..., Any]:
    def call(x: Any) -> Any:
        out = np.zeros_like(x)

        def late() -> None:
            time.sleep(0.2)
            out[:] = 2 * x

        threading.Thread(target=late, daemon=True).start()
        return out

    return call


def touches_up_later(case: ToyCase) -> Callable[..., Any]:
    """Right at first sight, then something else: the outputs are looked at twice."""

    def call(x: Any) -> Any:
        out = 2 * x
        threading.Thread(target=lambda: out.__setitem__(0, -1.0), daemon=True).start()
        time.sleep(0.001)
        return out

    return call


def wrong_shape(case: ToyCase) -> Callable[..., Any]:
    return lambda x: 2 * x[:-1]


def not_a_number(case: ToyCase) -> Callable[..., Any]:
    return lambda x: x * np.nan


def two_outputs(case: ToyCase) -> Callable[..., Any]:
    return lambda x: (2 * x, x)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (no_op, "NoneType"),
        (input_returned, "expected"),
        (mutator, "in place"),
        (cached_by_identity, "expected"),
        (first_answer_for_ever, "expected"),
        (honest_until_it_is_timed, "while it was timed"),
        (lazy, "not an array"),
        (fills_in_later, "expected"),
        (touches_up_later, "expected"),
        (wrong_shape, "shape"),
        (not_a_number, "not finite"),
        (two_outputs, "returned"),
    ],
)
def test_a_cheat_is_wrong_and_has_no_time(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[ToyCase], Callable[..., Any]], reason: str
) -> None:
    cell = measured(monkeypatch, build)
    assert cell.status == "wrong", cell
    assert reason in cell.reason
    assert cell.metrics == {}
    assert cell.duel is None


def test_the_gate_names_where_what_and_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(case: ToyCase) -> Callable[..., Any]:
        def call(x: Any) -> Any:
            out = 2 * x
            out[7] += 0.5
            return out

        return call

    reason = measured(monkeypatch, build).reason
    assert "output[7] is" in reason
    assert "rtol=1e-12" in reason
    assert "doubling is exact" in reason
    assert "1 of 2000" in reason


def raises(error: BaseException) -> Callable[[ToyCase], Callable[..., Any]]:
    def build(case: ToyCase) -> Callable[..., Any]:
        def call(x: Any) -> Any:
            raise error

        return call

    return build


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("it broke\nsecond line"), "crashed", "RuntimeError: it broke"),
        (MemoryError(), "oom", "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "oom", "out of memory"),
        (Unavailable("no fp64 here"), "unsupported", "no fp64 here"),
    ],
)
def test_what_a_contender_raises_becomes_a_status(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str, reason: str
) -> None:
    cell = measured(monkeypatch, raises(error))
    assert (cell.status, cell.metrics) == (status, {})
    assert reason in cell.reason


def test_an_honest_contender_gets_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = measured(monkeypatch, lambda case: honest)
    assert cell.status == "ok", cell.reason
    assert set(cell.metrics) >= {"latency_s", "slowdown", "peak_bytes", "error"}
    assert cell.metrics["slowdown"].ci is not None
    assert cell.control is not None
    assert len(cell.duel.contender_s) >= 10
    encode(cell)  # nothing in it that JSON could not hold


def test_a_time_above_the_measured_ceiling_is_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    ceiling = Ceiling(name="matrix", value=1e6, unit="flop/s", threads=1, dtype="fp64")
    cell = measured(monkeypatch, lambda case: honest, case=ToyCase(work=1e9), ceilings=(ceiling,))
    assert cell.status == "impossible"
    assert "ceiling" in cell.reason
    assert cell.metrics == {}
    assert cell.duel is None


def test_a_contender_for_another_device_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = measured(monkeypatch, lambda case: honest, device="cuda")
    assert (cell.status, cell.reason) == ("unsupported", "needs CUDA")


def test_the_baseline_is_ready_before_anything_of_the_contender_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def build(name: str) -> Callable[[ToyCase], Callable[..., Any]]:
        def ready(case: ToyCase) -> Callable[..., Any]:
            order.append(name)
            return honest

        return ready

    entries = {name: Contender(build=build(name)) for name in ("honest", "challenger")}

    def load(track: str, contender: str) -> Loaded:
        order.append(f"load {contender}")
        return Loaded(track, contender, "toy", entries[contender], "ok", "", ContenderNote())

    monkeypatch.setattr(measure, "load_contender", load)
    measure.measure_cell(TRACK, ToyCase(), "challenger", measure.Bench(PLACE, (), 0))
    assert order[:4] == ["load honest", "honest", "load challenger", "challenger"]


@pytest.mark.parametrize("calls", [range(3, 12), range(3, 10**6)], ids=["while it calibrates", "always"])
def test_inputs_changed_while_it_is_timed_are_seen(monkeypatch: pytest.MonkeyPatch, calls: range) -> None:
    def build(case: ToyCase) -> Callable[..., Any]:
        count = 0

        def call(x: Any) -> Any:
            nonlocal count
            count += 1
            if count in calls:
                x *= 2
                return x
            return 2 * x

        return call

    cell = measured(monkeypatch, build)
    assert (cell.status, cell.duel) == ("wrong", None)
    assert "in place while it was timed" in cell.reason


def test_the_audit_judges_what_was_asked_and_not_what_the_call_made_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(case: ToyCase) -> Callable[..., Any]:
        count = 0

        def call(x: Any) -> Any:
            nonlocal count
            count += 1
            if count > 2:
                x[:] = 0
            return 2 * x

        return call

    assert "in place while it was timed" in measured(monkeypatch, build).reason


def test_no_value_comes_back_while_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def build(case: ToyCase) -> Callable[..., Any]:
        def call(x: Any) -> Any:
            seen.append(x[:4].tobytes())
            time.sleep(1e-4)  # so that a sample is one call
            return 2 * x

        return call

    cell = measured(monkeypatch, build)
    assert cell.status == "ok", cell.reason
    assert len(cell.duel.contender_s) >= 10
    hits = len(seen) - len(set(seen))
    assert hits <= len(seen) // 10, "only calibration and the meters may ask twice"


@dataclass(frozen=True)
class ThreadedCase(ToyCase):
    threads: int | None = 1  # type: ignore[misc]


def spinning(case: ToyCase) -> Callable[..., Any]:
    def call(x: Any) -> Any:
        end = time.perf_counter() + 0.002
        while time.perf_counter() < end:
            pass
        return 2 * x

    return call


def test_one_busy_thread_where_one_is_allowed_is_never_accused(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = measured(monkeypatch, spinning, case=ThreadedCase())
    assert cell.status == "ok", cell.reason


def test_two_busy_threads_where_one_is_allowed_have_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "process_time_ns", lambda: 2 * time.perf_counter_ns())
    cell = measured(monkeypatch, spinning, case=ThreadedCase())
    assert (cell.status, cell.duel) == ("wrong", None)
    assert "cores busy; the case allows 1 thread" in cell.reason


def duel_of(cpu_s: list[float], wall_s: list[float], calls: int = 1) -> Duel:
    return Duel(wall_s, wall_s, wall_s, cpu_s, (calls, calls))


def test_more_cores_than_threads_are_wrong_and_nothing_else_is() -> None:
    with pytest.raises(Wrong, match=r"kept 1.90 cores busy; the case allows 1 thread$"):
        protocols.check_threads(1, duel_of([0.019] * 10, [0.010] * 10))
    with pytest.raises(Wrong, match="allows 2 threads"):
        protocols.check_threads(2, duel_of([0.025] * 10, [0.010] * 10))
    protocols.check_threads(1, duel_of([0.011] * 10, [0.010] * 10))  # within what clocks differ by
    protocols.check_threads(1, duel_of([0.019] * 4 + [0.010] * 6, [0.010] * 10))  # now and then
    protocols.check_threads(1, duel_of([0.00019] * 10, [0.0001] * 10))  # too short to read
    protocols.check_threads(None, duel_of([0.019] * 10, [0.010] * 10))  # every core is allowed
    protocols.check_threads(1, duel_of([], [0.010] * 10))  # a GPU has no such clock
    with pytest.raises(Wrong):  # a sample is all of its calls
        protocols.check_threads(1, duel_of([0.00019] * 10, [0.0001] * 10, calls=20))


def test_a_reason_is_short_whatever_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = measured(monkeypatch, raises(RuntimeError("\ud800" + "x" * 70_000_000)))
    assert cell.status == "crashed"
    assert len(cell.reason) <= 500
    assert len(encode(cell)) < 2000


def test_a_second_run_sees_the_started_mark_of_a_dead_one(tmp_path: Path) -> None:
    from archbench.cells import Started
    from archbench.harness.session import append, finished

    file = tmp_path / "run.jsonl"
    append(file, Started(track="toy", case="n1", contender="x"))
    assert finished(file, "toy", "n1", "x") is None
