"""Every cheat loses: the right status, a reason a reader understands, and never a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archbench.cells import Ceiling, encode
from archbench.track import Unavailable
from toy_track import ToyCase, honest, measured


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


def test_changing_a_global_setting_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="the global settings are torch's")
    threads = torch.get_num_threads()

    def build(case: ToyCase) -> Callable[..., Any]:
        torch.set_default_dtype(torch.float64)
        return honest

    try:
        cell = measured(monkeypatch, build)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
    assert cell.status == "wrong"
    assert "default_dtype" in cell.reason


def test_a_patched_clock_does_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(case: ToyCase) -> Callable[..., Any]:
        monkeypatch.setattr(time, "perf_counter_ns", lambda: 0)
        monkeypatch.setattr(time, "monotonic", lambda: 0.0)
        return honest

    cell = measured(monkeypatch, build)
    assert cell.status == "ok"
    assert cell.metrics["latency_s"].value > 1e-8


def test_a_second_run_sees_the_started_mark_of_a_dead_one(tmp_path: Path) -> None:
    from archbench.cells import Started
    from archbench.harness.session import append, finished

    file = tmp_path / "run.jsonl"
    append(file, Started(track="toy", case="n1", contender="x"))
    assert finished(file, "toy", "n1", "x") is None
