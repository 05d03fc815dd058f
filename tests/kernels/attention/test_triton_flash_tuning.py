"""The choice of a configuration: by the clock, once, remembered; without a GPU, on a clock of the test's own."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")
pytest.importorskip("triton", reason="no Triton for this platform")

from triton.runtime.errors import OutOfResources

from archbench.kernels.attention import _triton_flash_tuning as tuning
from archbench.kernels.attention import triton_flash
from archbench.kernels.attention._triton_flash_space import Config, shared_bytes
from archbench.kernels.attention._triton_flash_tuning import Choice

SLOW, QUICK, HUGE = Config(128, 128, 8, 3), Config(64, 64, 4, 2, tma=True), Config(256, 256, 8, 4)


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
    assert tuning.race((HUGE, SLOW, QUICK), clock.launch, clock.seconds) == Choice(QUICK, pytest.approx(0.008))
    assert clock.launched[-2:] == [SLOW, QUICK]  # rounds alternate


def test_short_kernels_are_repeated() -> None:
    clock = Clock({QUICK: tuning.ROUND_S / 10})
    tuning.race((QUICK,), clock.launch, clock.seconds)
    assert len(clock.launched) == pytest.approx(2 + tuning.ROUNDS * 10, abs=tuning.ROUNDS)


def test_nothing_that_fits_is_an_error() -> None:
    clock = Clock({})
    with pytest.raises(RuntimeError, match="none of 1 configurations"):
        tuning.race((HUGE,), clock.launch, clock.seconds)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock({SLOW: 0.01, QUICK: 0.008})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(
        tuning, "race", lambda candidates, launch, race=tuning.race: race(candidates, launch, found.seconds)
    )
    return found


def test_a_question_is_raced_once(clock: Clock, tmp_path: Path) -> None:
    assert tuning.fastest("question", (SLOW, QUICK), clock.launch).config == QUICK
    raced = len(clock.launched)
    assert tuning.fastest("question", (SLOW, QUICK), clock.launch).config == QUICK
    assert len(clock.launched) == raced
    tuning.fastest("another question", (SLOW,), clock.launch)
    assert len(clock.launched) > raced
    (path,) = (tmp_path / "archbench" / "triton_flash").iterdir()
    assert set(tuning.recall(path)) == {"a GPU question", "a GPU another question"}


def test_a_choice_that_is_no_candidate_is_raced_again(clock: Clock) -> None:
    tuning.fastest("question", (QUICK,), clock.launch)
    assert tuning.fastest("question", (SLOW,), clock.launch).config == SLOW


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"key": 1}', '{"key": {"config": {}, "seconds": 1}}', json.dumps({"key": {}})]
)
def test_a_spoilt_file_is_as_good_as_none(content: str, tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    assert tuning.recall(path) == {}
    path.write_text(content)
    assert tuning.recall(path) == {}
    tuning.remember(path, "key", Choice(QUICK, 0.5))
    assert tuning.recall(path) == {"key": Choice(QUICK, 0.5)}


def test_a_cache_that_cannot_be_written_is_done_without(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    assert tuning.fastest("question", (SLOW, QUICK), clock.launch).config == QUICK


def test_each_gpu_has_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.store_path("one") != tuning.store_path("another")
    assert tuning.store_path("one").is_relative_to(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tuning.store_path("one").is_relative_to(Path.home() / ".cache")


def test_stages_of_what_streams_are_what_fills_shared_memory() -> None:
    config = Config(128, 64, 8, 3, tma=True)
    q, kv = 128 * 128 * 2, 64 * 128 * 2
    assert shared_bytes("forward", config, 128, torch.bfloat16) == q + 3 * 2 * kv
    assert shared_bytes("keys", config, 128, torch.bfloat16) == 2 * kv + 3 * 2 * q


@pytest.mark.parametrize(("fused_s", "ways"), [(1.9, "one pass"), (2.1, "split")])
def test_the_quicker_backward_is_taken(fused_s: float, ways: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Sequence[Config]] = {}
    took = {"forward": 1.0, "keys": 1.0, "queries": 1.0, "fused": fused_s}

    def fastest(question: str, candidates: Sequence[Config], run: Callable[[Config], Any]) -> Choice:
        asked[question] = candidates
        run(candidates[-1])
        return Choice(candidates[0], took[question.split()[0]])

    answers: list[tuple[str, Config]] = []

    def answer(name: str, value: Any) -> Callable[..., Any]:
        def launched(*given: Any) -> Any:
            answers.append((name, given[-1]))
            return value

        return launched

    q, k = torch.zeros(2, 4, 33, 64, dtype=torch.bfloat16), torch.zeros(2, 2, 33, 64, dtype=torch.bfloat16)
    monkeypatch.setattr(triton_flash, "_CHOSEN", {})
    monkeypatch.setattr(triton_flash, "fastest", fastest)
    monkeypatch.setattr(triton_flash, "_gpu", lambda device: (9, 1 << 20))
    monkeypatch.setattr(triton_flash.launch, "one_pass", answer("one pass", (q + 1, k + 1, k + 2)))
    monkeypatch.setattr(triton_flash.launch, "split_keys", answer("keys", (k + 1, k + 2)))
    monkeypatch.setattr(triton_flash.launch, "split_queries", answer("queries", q + 1))
    monkeypatch.setattr(triton_flash.launch, "row_sums", lambda saved: saved.logsumexp)
    for _ in range(2):  # the second call asks nothing
        dq, dk, dv = torch.ops.archbench.triton_flash_backward(q, k, k, q, q[..., 0].float(), q, True)
    assert (dq[0, 0, 0, 0], dk[0, 0, 0, 0], dv[0, 0, 0, 0]) == (1, 1, 2)
    assert len(asked) == 3
    assert all(question.endswith("q(2, 4, 33, 64) k(2, 2, 33, 64) causal=True") for question in asked)
    final = answers[3:]  # after a launch of each race
    assert [name for name, _ in final] == 2 * (["one pass"] if ways == "one pass" else ["keys", "queries"])
    assert all(config in candidates for (_, config), candidates in zip(answers, asked.values(), strict=False))


def test_what_has_no_room_is_no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[Config]] = []

    def fastest(question: str, candidates: Sequence[Config], run: Callable[[Config], Any]) -> Choice:
        seen.append(candidates)
        return Choice(candidates[0], 1.0)

    q = torch.zeros(1, 1, 1, 128, dtype=torch.bfloat16)
    monkeypatch.setattr(triton_flash, "_CHOSEN", {})
    monkeypatch.setattr(triton_flash, "fastest", fastest)
    monkeypatch.setattr(triton_flash.launch, "forward", lambda *given: (q + 1, torch.zeros(1, 1, 1)))
    for room in (1 << 20, 140_000):
        triton_flash._CHOSEN.clear()
        monkeypatch.setattr(triton_flash, "_gpu", lambda device, room=room: (9, room))
        torch.ops.archbench.triton_flash_forward(q, q, q, False)
    assert len(seen[0]) > len(seen[1]) > 0
