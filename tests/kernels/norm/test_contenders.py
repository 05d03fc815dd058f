"""What the generic test cannot see of the norm contenders written in torch."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.kernels.norm import EPS, MOMENTUM, TRACK, NormCase  # noqa: E402 - the skip comes before what needs torch
from archbench.track import Contender  # noqa: E402

BATCH = NormCase("batch_train", (5, 6, 7, 4), dtype="fp64", backward=True)
EXACT = [
    BATCH,
    replace(BATCH, channels_last=True),
    replace(BATCH, kind="batch_eval"),
    replace(BATCH, kind="instance"),
    replace(BATCH, kind="group", groups=2),
    NormCase("layer", (3, 11, 24), dtype="fp64", backward=True),
    NormCase("rms", (3, 11, 24), dtype="fp64", backward=True),
]


def contender(name: str) -> Contender[NormCase]:
    found: Contender[NormCase] = importlib.import_module(f"archbench.kernels.norm.{name}").CONTENDER
    return found


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.slug)
def test_hand_derived_gradients_are_those_of_torch(case: NormCase) -> None:
    inputs = TRACK.make_inputs(case, 11, "cpu")
    got, want = (TRACK.workload(case, contender(name).build(case))(*inputs) for name in ("manual_backward", "torch_nn"))
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert torch.linalg.norm(one - other) <= 1e-10 * torch.linalg.norm(other)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.slug)
def test_hand_derived_gradients_are_those_of_differences(case: NormCase) -> None:
    x, *rest, _ = TRACK.make_inputs(replace(case, dtype="fp64"), 12, "cpu")
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    call = contender("manual_backward").build(case)
    leaves = [tensor.requires_grad_() for tensor in (x, *rest[: 2 if case.bias else 1])]

    def y_of(*learned: Any) -> Any:
        answer = call(*learned, *rest[len(leaves) - 1 :])
        return answer[0] if isinstance(answer, tuple) else answer

    assert torch.autograd.gradcheck(y_of, leaves, fast_mode=True)


def test_a_second_derivative_is_refused_instead_of_wrong() -> None:
    x, *rest, dy = TRACK.make_inputs(BATCH, 12, "cpu")
    y, *_ = contender("manual_backward").build(BATCH)(x.requires_grad_(), *rest)
    (dx,) = torch.autograd.grad(y, x, dy.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("name", ["torch_nn", "manual_backward"])
def test_running_statistics_are_those_of_the_module(name: str) -> None:
    case = replace(BATCH, dtype="fp32", backward=False)
    x, weight, bias, mean, var = TRACK.make_inputs(case, 13, "cpu")
    module = torch.nn.BatchNorm2d(6, eps=EPS, momentum=MOMENTUM)
    module.load_state_dict({"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}, strict=False)
    with torch.no_grad():
        want = (module(x), module.running_mean, module.running_var)
        got = contender(name).build(case)(x, weight, bias, mean, var)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-3)


def test_torch_adds_up_bf16_gradients_of_layer_norm_in_bf16() -> None:
    """Why the track has no such case: torch's own answer would fail. When this changes, the case belongs in."""
    case = NormCase("layer", (3, 131, 256), dtype="bf16", backward=True)
    inputs = TRACK.make_inputs(case, 14, "cpu")
    *_, dbias = TRACK.workload(case, contender("torch_nn").build(case))(*inputs)
    want = inputs[-1].double().sum((0, 1))
    assert torch.linalg.norm(dbias - want) > 0.01 * torch.linalg.norm(want)
