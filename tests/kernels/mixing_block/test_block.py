"""The block and its gate: one answer with and without gradients, and wrong answers that are seen."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import importlib
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.checks import Wrong
from archbench.kernels.mixing_block import TRACK, MixingBlockCase, _layers
from archbench.track import Contender, Place, Unavailable

FORWARD = MixingBlockCase(batch=3, length=30, width=24, heads=3)
BOTH = MixingBlockCase(batch=2, length=20, width=24, heads=3, backward=True)
NAMES = ("attention", "fourier", "fourier_fft2", "linear", "none")


def contender(name: str) -> Contender[MixingBlockCase]:
    found: Contender[MixingBlockCase] = importlib.import_module(f"archbench.kernels.mixing_block.{name}").CONTENDER
    return found


def judge(name: str, case: MixingBlockCase, inputs: Any, outputs: Any) -> float:
    return (contender(name).gate or TRACK.gate)(case, inputs, outputs)


@pytest.mark.parametrize("name", NAMES)
def test_chunks_without_gradients_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block: Any = contender(name).build(FORWARD)
    (x_BTD,) = TRACK.make_inputs(FORWARD, 1, "cpu")
    with torch.enable_grad():
        whole = block(x_BTD).detach()
    monkeypatch.setattr(_layers, "BLOCK_TOKENS", 60)  # two samples and one
    monkeypatch.setattr(_layers, "FEED_FORWARD_TOKENS", 7)  # the last one of four
    with torch.no_grad():
        torch.testing.assert_close(block(x_BTD), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_each_passes_its_own_gate_and_no_other(name: str) -> None:
    inputs = TRACK.make_inputs(FORWARD, 2, "cpu")
    out = TRACK.workload(FORWARD, contender(name).build(FORWARD))(*inputs)
    same = {"fourier": {"fourier", "fourier_fft2"}, "fourier_fft2": {"fourier", "fourier_fft2"}}.get(name, {name})
    for other in NAMES:
        if other in same:
            assert judge(other, FORWARD, inputs, out) < 1e-5
        else:
            with pytest.raises(Wrong):
                judge(other, FORWARD, inputs, out)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_off_by_a_thousandth_is_wrong(name: str) -> None:
    inputs = TRACK.make_inputs(BOTH, 3, "cpu")
    answer = TRACK.workload(BOTH, contender(name).build(BOTH))(*inputs)
    assert judge(name, BOTH, inputs, answer) < 1e-5
    for part in answer:
        with pytest.raises(Wrong, match=rf"^{part}"):
            judge(name, BOTH, inputs, answer | {part: answer[part] * 1.001})


def test_an_answer_in_another_precision_is_another_answer() -> None:
    inputs = TRACK.make_inputs(FORWARD, 4, "cpu")
    out = TRACK.workload(FORWARD, contender("attention").build(FORWARD))(*inputs)
    with pytest.raises(Wrong, match=r"output is torch\.float64"):
        TRACK.gate(FORWARD, inputs, out.double())


def test_the_published_line_has_no_bf16() -> None:
    with pytest.raises(Unavailable, match="bf16"):
        contender("fourier_fft2").build(MixingBlockCase(dtype="bf16"))


def test_sizes_that_make_no_block_are_refused() -> None:
    with pytest.raises(ValueError, match="width 30 is not divisible by 4 heads"):
        MixingBlockCase(width=30, heads=4)
    with pytest.raises(ValueError, match="allowed are fp64, fp32, bf16"):
        MixingBlockCase(dtype="fp16")


def test_operations_are_those_of_the_products() -> None:
    case = MixingBlockCase(batch=1, length=2, width=4, heads=2)
    # q, k, v and output: 4 products of (2 x 4)(4 x 4); scores and mix: (2 x 4)(4 x 2) and back; up and down: 16 wide
    assert case.flops() == 2 * (4 * 2 * 4 * 4 + 2 * 2 * 2 * 4 + 2 * 2 * 4 * 16)
    assert MixingBlockCase(backward=True).flops() == 3 * MixingBlockCase().flops()


def test_large_cases_are_left_to_gpus() -> None:
    host, gpu = Place("cpu", 2, 4 << 30), Place("cuda", 2, 16 << 30)
    skipped = [case for case in TRACK.bench_cases if TRACK.skip(case, host)]
    assert skipped
    assert all("GPU" in str(TRACK.skip(case, host)) and TRACK.skip(case, gpu) is None for case in skipped)
    assert "thread count" in str(TRACK.skip(MixingBlockCase(threads=1), gpu))
