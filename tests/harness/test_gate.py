"""Who judges an answer: the track's gate, a contender's own, or what the track's workload made of the call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from archbench.cells import Cell, ContenderNote
from archbench.checks import Wrong
from archbench.discovery import Loaded
from archbench.harness import measure
from archbench.track import Contender, Track
from toy_track import PLACE, TRACK, ToyCase, honest

Build = Callable[[ToyCase], Callable[..., Any]]


class Tripling:
    """A workload's call that asks for three times the input, and says so of every answer."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, x: Any) -> Any:
        return self.call(x)

    def judge(self, inputs: tuple[Any, ...], outputs: Any) -> float:
        if not np.array_equal(outputs, 3 * inputs[0]):
            raise Wrong("not three times the input")
        return 0.25


class Lenient:
    """A contender that calls any answer of its own right."""

    def __call__(self, x: Any) -> Any:
        return 5 * x

    def judge(self, inputs: tuple[Any, ...], outputs: Any) -> float:
        return 0.0


def cell(monkeypatch: pytest.MonkeyPatch, track: Track[ToyCase], build: Build, **options: Any) -> Cell:
    found = {"honest": Contender[ToyCase](build=lambda case: honest), "challenger": Contender(build=build, **options)}
    monkeypatch.setattr(
        measure,
        "load_contender",
        lambda track, contender: Loaded(track, contender, "toy", found[contender], "ok", "", ContenderNote()),
    )
    if track.workload is not TRACK.workload:
        found["honest"] = Contender(build=build)  # the baseline answers the same question
    return measure.measure_cell(track, ToyCase(), "challenger", measure.Bench(PLACE, (), cache_bytes=1 << 16))


def test_what_the_workload_made_judges_in_the_gates_place(monkeypatch: pytest.MonkeyPatch) -> None:
    track = replace(TRACK, workload=lambda case, call: Tripling(call))
    right = cell(monkeypatch, track, lambda case: lambda x: 3 * x)
    assert right.status == "ok", right.reason
    assert right.metrics["error"].value == 0.25


def test_it_refuses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    track = replace(TRACK, workload=lambda case, call: Tripling(call), baseline="challenger")
    wrong = cell(monkeypatch, track, lambda case: honest)  # right for the gate
    assert (wrong.status, wrong.reason) == ("wrong", "not three times the input")


def test_an_answer_while_it_was_timed_is_judged_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def tiring(x: Any) -> Any:
        calls.append(x)
        return 3 * x if len(calls) <= 2 else 2 * x

    track = replace(TRACK, workload=lambda case, call: Tripling(call), baseline="challenger")
    wrong = cell(monkeypatch, track, lambda case: tiring)
    assert (wrong.status, wrong.reason) == ("wrong", "answered wrongly while it was timed: not three times the input")


def test_a_contender_does_not_judge_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = cell(monkeypatch, TRACK, lambda case: Lenient())
    assert wrong.status == "wrong"
    assert "expected" in wrong.reason


def test_a_contender_of_another_function_brings_its_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    track = replace(TRACK, workload=lambda case, call: Tripling(call), baseline="challenger")
    own = {"differs": "five times", "gate": lambda case, inputs, outputs: 0.5}
    found = cell(monkeypatch, track, lambda case: lambda x: 5 * x, **own)
    assert found.status == "ok", found.reason
    assert found.metrics["error"].value == 0.5
