"""The choice of a configuration: by the clock, once, remembered; without a GPU, on a clock of the test's own."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")
pytest.importorskip("triton", reason="no Triton for this platform")

from triton.runtime.errors import OutOfResources

from archbench.kernels.triton_tuning import ROUND_S, ROUNDS, Choice, Tuner, race


@dataclass(frozen=True)
class Config:
    block: int
    copied: bool = False


SLOW, QUICK, HUGE = Config(128), Config(64, copied=True), Config(256)
TUNER = Tuner("toy", Config, (Path(__file__),))


class Clock:
    """A device on which each configuration takes its time, and one has no room."""

    def __init__(self, seconds: dict[Config, float]) -> None:
        self.now = 0.0
        self.launched: list[Config] = []
        self._seconds = seconds

    def launch(self, config: Config) -> None:
        if config == HUGE:
            raise OutOfResources(300_000, 232_448, "shared memory")
        self.launched.append(config)
        self.now += self._seconds[config] * (3 if self.launched.count(config) == 4 else 1)  # one interruption each

    def seconds(self, call: Callable[[], object], repeats: int) -> float:
        begin = self.now
        for _ in range(repeats):
            call()
        return self.now - begin


def test_the_smallest_median_wins_and_what_does_not_fit_is_left_out() -> None:
    clock = Clock({SLOW: 0.01, QUICK: 0.008})
    assert race((HUGE, SLOW, QUICK), clock.launch, clock.seconds) == Choice(QUICK, pytest.approx(0.008))
    assert clock.launched[-2:] == [SLOW, QUICK]  # rounds alternate


def test_short_kernels_are_repeated() -> None:
    clock = Clock({QUICK: ROUND_S / 10})
    race((QUICK,), clock.launch, clock.seconds)
    assert len(clock.launched) == pytest.approx(2 + ROUNDS * 10, abs=ROUNDS)


def test_nothing_that_fits_is_an_error() -> None:
    clock = Clock({})
    with pytest.raises(RuntimeError, match="none of 1 configurations"):
        race((HUGE,), clock.launch, clock.seconds)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock({SLOW: 0.01, QUICK: 0.008})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    return found


def test_a_question_is_raced_once(clock: Clock, tmp_path: Path) -> None:
    assert TUNER.fastest("question", (SLOW, QUICK), clock.launch, clock.seconds).config == QUICK
    raced = len(clock.launched)
    assert TUNER.fastest("question", (SLOW, QUICK), clock.launch, clock.seconds).config == QUICK
    assert len(clock.launched) == raced
    TUNER.fastest("another question", (SLOW,), clock.launch, clock.seconds)
    assert len(clock.launched) > raced
    (path,) = (tmp_path / "archbench" / "toy").iterdir()
    assert set(TUNER.recall(path)) == {"a GPU question", "a GPU another question"}


def test_a_choice_that_is_no_candidate_is_raced_again(clock: Clock) -> None:
    TUNER.fastest("question", (QUICK,), clock.launch, clock.seconds)
    assert TUNER.fastest("question", (SLOW,), clock.launch, clock.seconds).config == SLOW


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"key": 1}', '{"key": {"config": {}, "seconds": 1}}', json.dumps({"key": {}})]
)
def test_a_spoilt_file_is_as_good_as_none(content: str, tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    assert TUNER.recall(path) == {}
    path.write_text(content)
    assert TUNER.recall(path) == {}
    TUNER.remember(path, "key", Choice(QUICK, 0.5))
    assert TUNER.recall(path) == {"key": Choice(QUICK, 0.5)}


def test_a_cache_that_cannot_be_written_is_done_without(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    assert TUNER.fastest("question", (SLOW, QUICK), clock.launch, clock.seconds).config == QUICK


def test_each_gpu_has_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert TUNER.store_path("one") != TUNER.store_path("another")
    assert TUNER.store_path("one").is_relative_to(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert TUNER.store_path("one").is_relative_to(Path.home() / ".cache")


def test_another_kernel_has_another_file(tmp_path: Path) -> None:
    source = tmp_path / "kernel.py"
    source.write_text("one")
    tuner = Tuner("toy", Config, (source,))
    first = tuner.store_path("a GPU")
    source.write_text("another")
    assert tuner.store_path("a GPU") != first
