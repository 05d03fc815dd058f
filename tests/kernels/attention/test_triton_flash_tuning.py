"""What is raced for ``triton_flash``: configurations that have room, and two ways to do the backward."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")
pytest.importorskip("triton", reason="no Triton for this platform")

from archbench.kernels.attention import triton_flash
from archbench.kernels.attention._triton_flash_space import Config, shared_bytes
from archbench.kernels.triton_tuning import Choice


def test_stages_of_what_streams_are_what_fills_shared_memory() -> None:
    config = Config(128, 64, 8, 3, tma=True)
    q, kv = 128 * 128 * 2, 64 * 128 * 2
    assert shared_bytes("forward", config, 128, torch.bfloat16) == q + 3 * 2 * kv
    assert shared_bytes("keys", config, 128, torch.bfloat16) == 2 * kv + 3 * 2 * q


@pytest.mark.parametrize(("fused_s", "ways"), [(1.9, "one pass"), (2.1, "split")])
def test_the_quicker_backward_is_taken(fused_s: float, ways: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Sequence[Config]] = {}
    took = {"forward": 1.0, "keys": 1.0, "queries": 1.0, "fused": fused_s}

    def fastest(question: str, candidates: Sequence[Config], run: Callable[[Config], Any]) -> Choice[Config]:
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
    monkeypatch.setattr(triton_flash, "TUNER", SimpleNamespace(fastest=fastest))
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

    def fastest(question: str, candidates: Sequence[Config], run: Callable[[Config], Any]) -> Choice[Config]:
        seen.append(candidates)
        return Choice(candidates[0], 1.0)

    q = torch.zeros(1, 1, 1, 128, dtype=torch.bfloat16)
    monkeypatch.setattr(triton_flash, "_CHOSEN", {})
    monkeypatch.setattr(triton_flash, "TUNER", SimpleNamespace(fastest=fastest))
    monkeypatch.setattr(triton_flash.launch, "forward", lambda *given: (q + 1, torch.zeros(1, 1, 1)))
    for room in (1 << 20, 140_000):
        triton_flash._CHOSEN.clear()
        monkeypatch.setattr(triton_flash, "_gpu", lambda device, room=room: (9, room))
        torch.ops.archbench.triton_flash_forward(q, q, q, False)
    assert len(seen[0]) > len(seen[1]) > 0
