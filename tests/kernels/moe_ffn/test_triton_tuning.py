"""The choice of a configuration: by the clock, once, remembered; without a GPU, on a clock of the test's own."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")
pytest.importorskip("triton", reason="no Triton for this platform")

from triton.runtime.errors import OutOfResources

from archbench.kernels.moe_ffn import _triton_tuning as tuning
from archbench.kernels.moe_ffn._triton_space import Config

SLOW, QUICK, HUGE = Config(128, 128, 64, 8, 3), Config(128, 64, 64, 4, 3, tma=True), Config(256, 256, 64, 8, 4)


class Clock:
    """A device on which each configuration takes its time, one is interrupted once, and one has no room."""

    def __init__(self) -> None:
        self.now = 0.0
        self.launched: list[Config] = []

    def launch(self, config: Config) -> None:
        if config == HUGE:
            raise OutOfResources(300_000, 232_448, "shared memory")
        self.launched.append(config)
        interrupted = config == QUICK and self.launched.count(QUICK) == 3
        self.now += 1.0 if interrupted else {SLOW: 0.01, QUICK: 0.008}[config]

    def seconds(self, call: Callable[[], object]) -> float:
        begin = self.now
        call()
        return self.now - begin


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    race = tuning.race
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(tuning, "race", lambda candidates, launch: race(candidates, launch, clock.seconds))
    return clock


def test_the_smallest_median_wins_and_what_does_not_fit_is_left_out(clock: Clock) -> None:
    assert tuning.fastest("in", (HUGE, SLOW, QUICK), clock.launch) == QUICK
    assert clock.launched == [SLOW, QUICK] * (1 + tuning.ROUNDS)  # rounds alternate


def test_nothing_that_fits_is_an_error(clock: Clock) -> None:
    with pytest.raises(RuntimeError, match="none of 1 configurations"):
        tuning.race((HUGE,), clock.launch)


def test_one_candidate_needs_no_clock(clock: Clock) -> None:
    assert tuning.fastest("in", (SLOW,), clock.launch) == SLOW
    assert clock.launched == []


def test_a_choice_is_remembered_by_question_and_made_again_where_it_is_none(clock: Clock) -> None:
    tuning.fastest("in", (SLOW, QUICK), clock.launch)
    launches = len(clock.launched)
    assert tuning.fastest("in", (QUICK, SLOW), clock.launch) == QUICK
    assert len(clock.launched) == launches
    tuning.fastest("out", (SLOW, QUICK), clock.launch)
    assert len(clock.launched) == 2 * launches
    path = tuning.store_path("a GPU")
    assert set(tuning.recall(path)) == {"a GPU in", "a GPU out"}
    tuning.remember(path, "a GPU in", HUGE)  # no candidate any more
    assert tuning.fastest("in", (SLOW, QUICK), clock.launch) == QUICK


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', json.dumps({"a": {"block_m": 1}})])
def test_a_file_that_is_not_ours_says_nothing(text: str, tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    path.write_text(text)
    assert tuning.recall(path) == {}


def test_another_gpu_has_another_file() -> None:
    assert tuning.store_path("a GPU") != tuning.store_path("another GPU")
