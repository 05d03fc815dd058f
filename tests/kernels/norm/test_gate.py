"""The gate of the norm track: the reference is right, and wrong answers of every kind are refused."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

import torch.nn.functional as F

from archbench.checks import Wrong
from archbench.harness.pool import rolled
from archbench.kernels.norm import EPS, MOMENTUM, TRACK, NormCase, _workload, torch_nn

BATCH = NormCase("batch_train", (6, 7, 9, 8), backward=True)
LAYER = NormCase("layer", (3, 11, 96), backward=True)
GROUP = NormCase("group", (3, 12, 7, 5), groups=4, backward=True)
RMS = NormCase("rms", (3, 11, 96), backward=True)
EVERY_KIND = (BATCH, replace(BATCH, kind="batch_eval"), LAYER, replace(BATCH, kind="instance"), GROUP, RMS)


def answer(case: NormCase, call: Any, inputs: Any) -> list[Any]:
    found = TRACK.workload(case, call)(*inputs)
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("case", EVERY_KIND, ids=lambda case: case.kind)
def test_the_reference_is_torchs_layer_in_float64(case: NormCase) -> None:
    case = replace(case, dtype="fp64")
    inputs = TRACK.make_inputs(case, 5, "cpu")
    theirs = answer(case, torch_nn.CONTENDER.build(case), inputs)
    assert len(theirs) == len(_workload.names(case))
    for got, want in zip(_workload.reference(case, *inputs), theirs, strict=True):
        assert got.shape == want.shape
        assert torch.linalg.norm(got - want) <= 1e-10 * torch.linalg.norm(want)


@pytest.mark.parametrize("case", EVERY_KIND, ids=lambda case: case.kind)
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_torch_passes_with_room_for_any_seed(case: NormCase, dtype: str) -> None:
    case = replace(case, dtype=dtype)
    for seed in range(20):
        inputs = TRACK.make_inputs(case, seed, "cpu")
        found = answer(case, torch_nn.CONTENDER.build(case), inputs)
        wanted = zip(_workload.reference(case, *inputs), _workload.bounds(case, *inputs), strict=True)
        for got, (want, bound) in zip(found, wanted, strict=True):
            assert bool(((got.double() - want).abs() <= 0.7 * bound).all())


def test_inputs_are_hard_and_the_same_for_a_seed() -> None:
    first, again, other = (TRACK.make_inputs(BATCH, seed, "cpu") for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    mean, deviation = first[0].mean((0, 2, 3)), first[0].std((0, 2, 3))
    assert mean[1] > 999
    assert deviation[1] == pytest.approx(1, abs=0.2)
    assert deviation[3] ** 2 < EPS
    half = TRACK.make_inputs(replace(BATCH, dtype="bf16"), 1, "cpu")
    assert [tensor.dtype for tensor in half] == [torch.bfloat16] + 4 * [torch.float32] + [torch.bfloat16]
    last = TRACK.make_inputs(replace(BATCH, channels_last=True), 1, "cpu")
    assert last[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last[0], first[0])


@pytest.mark.parametrize("case", EVERY_KIND, ids=lambda case: case.kind)
def test_rolled_inputs_have_a_finite_answer(case: NormCase) -> None:
    inputs = rolled(TRACK.make_inputs(case, 3, "cpu"), 5)
    assert all(tensor.isfinite().all() for tensor in answer(case, torch_nn.CONTENDER.build(case), inputs))


def normal(x: Any, dims: Any, *, correction: int = 0, eps: float = EPS) -> Any:
    var, mean = torch.var_mean(x, dims, correction=correction, keepdim=True)
    return (x - mean) / (var + eps).sqrt()


def of_layer(form: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, w, b: form(x) * w + b


def one_pass(x: Any) -> Any:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x * x).mean(-1, keepdim=True) - mean * mean).clamp(min=0).add(EPS).sqrt()


def beside_the_root(x: Any) -> Any:
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, correction=0, keepdim=True) + EPS)


def batch(x: Any, w: Any, b: Any, mean: Any, var: Any, *, biased: bool = False, momentum: float = MOMENTUM) -> Any:
    y = normal(x, (0, 2, 3)) * w[:, None, None] + b[:, None, None]
    new_var, new_mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0 if biased else 1)
    return y, mean.lerp(new_mean, momentum), var.lerp(new_var, momentum)


MISTAKES: dict[str, tuple[NormCase, Callable[..., Any]]] = {
    "variance divided by n - 1": (LAYER, of_layer(lambda x: normal(x, -1, correction=1))),
    "no epsilon": (LAYER, of_layer(lambda x: normal(x, -1, eps=0))),
    "epsilon of another layer": (LAYER, of_layer(lambda x: normal(x, -1, eps=1e-6))),
    "epsilon added to the deviation": (LAYER, of_layer(beside_the_root)),
    "variance as mean(x^2) - mean(x)^2": (LAYER, of_layer(one_pass)),
    "over all tokens": (LAYER, of_layer(lambda x: normal(x, (1, 2)))),
    "no bias": (LAYER, lambda x, w, b: normal(x, -1) * w + 0 * b),
    "no weight": (LAYER, lambda x, w, b: normal(x, -1) + b + 0 * w),
    "statistics are constants": (LAYER, lambda x, w, b: _constant(x) * w + b),
    "no gradient of the bias": (LAYER, lambda x, w, b: normal(x, -1) * w + b.detach() + 0 * b),
    "no gradient of the weight": (LAYER, lambda x, w, b: normal(x, -1) * w.detach() + b + 0 * w),
    "a mean is subtracted": (RMS, lambda x, w: normal(x, -1) * w),
    "groups interleaved": (GROUP, lambda x, w, b: _interleaved(x) * w[:, None, None] + b[:, None, None]),
    "one group": (GROUP, lambda x, w, b: F.group_norm(x, 1, w, b, EPS)),
    "biased running variance": (BATCH, lambda *inputs: batch(*inputs, biased=True)),
    "momentum the other way round": (BATCH, lambda *inputs: batch(*inputs, momentum=1 - MOMENTUM)),
    "running statistics not updated": (BATCH, lambda *inputs: (batch(*inputs)[0], *inputs[3:])),
    "statistics of the batch": (replace(BATCH, kind="batch_eval"), lambda *inputs: batch(*inputs)[0]),
    "not a number": (LAYER, lambda x, w, b: normal(x, -1) * w + b + 0 * (x - x) / (x - x)),
}  # fmt: skip


def _constant(x: Any) -> Any:
    var, mean = torch.var_mean(x.detach(), -1, correction=0, keepdim=True)
    return (x - mean) / (var + EPS).sqrt()


def _interleaved(x: Any) -> Any:
    """Channels c, c + C / G, ... make a group, where consecutive ones should."""
    seen = x.unflatten(1, (-1, 4)).transpose(1, 2)
    return normal(seen, (2, 3, 4)).transpose(1, 2).flatten(1, 2)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_wrong(mistake: str) -> None:
    case, call = MISTAKES[mistake]
    inputs = TRACK.make_inputs(case, 3, "cpu")
    assert TRACK.gate(case, inputs, answer(case, torch_nn.CONTENDER.build(case), inputs)) < 1e-3
    with pytest.raises(Wrong):
        TRACK.gate(case, inputs, answer(case, call, inputs))


def test_the_right_formula_is_right() -> None:
    """What the mistakes are variants of, so that it is the variation that is refused."""
    right = [
        (LAYER, of_layer(lambda x: normal(x, -1))),
        (BATCH, batch),
        (RMS, lambda x, w: x * (x.square().mean(-1, True) + EPS).rsqrt() * w),
    ]
    for case, call in right:
        inputs = TRACK.make_inputs(case, 3, "cpu")
        assert TRACK.gate(case, inputs, answer(case, call, inputs)) < 1e-3


@pytest.mark.parametrize("case", [BATCH, LAYER, RMS], ids=lambda case: case.kind)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_output_is_looked_at(case: NormCase, dtype: str) -> None:
    case = replace(case, dtype=dtype)
    inputs = TRACK.make_inputs(case, 4, "cpu")
    right = [
        tensor.to(x.dtype) for tensor, x in zip(_workload.reference(case, *inputs), _like(case, inputs), strict=True)
    ]
    assert TRACK.gate(case, inputs, right) < 0.01
    for i, name in enumerate(_workload.names(case)):
        wrong = [value * 1.05 if i == k else value for k, value in enumerate(right)]
        with pytest.raises(Wrong, match=rf"^{name}\["):
            TRACK.gate(case, inputs, wrong)
    with pytest.raises(Wrong, match=f"returned 1 tensors, expected {len(right)}: y, "):
        TRACK.gate(case, inputs, right[0])
    with pytest.raises(Wrong, match="y has shape"):
        TRACK.gate(case, inputs, [right[0][1:], *right[1:]])


def _like(case: NormCase, inputs: Any) -> list[Any]:
    return [inputs[0 if name in ("y", "dx") else 1] for name in _workload.names(case)]


def test_another_precision_is_another_answer() -> None:
    case = NormCase("rms", (2, 5, 7), dtype="bf16")
    inputs = TRACK.make_inputs(case, 8, "cpu")
    with pytest.raises(Wrong, match=r"y is torch\.float32, expected torch\.bfloat16"):
        TRACK.gate(case, inputs, torch_nn.CONTENDER.build(case)(*inputs).float())
    double = replace(LAYER, dtype="fp64", backward=False)
    wide = TRACK.make_inputs(double, 8, "cpu")
    with pytest.raises(Wrong, match="fp64"):
        TRACK.gate(double, wide, F.layer_norm(wide[0].float(), (96,), *(one.float() for one in wide[1:])).double())
