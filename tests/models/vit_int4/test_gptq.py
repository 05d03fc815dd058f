"""GPTQ: what it costs is what theory says, on levels that the quantiser knows, and less than rounding alone."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor

from archbench.models.vit_int4 import VitCase, _gptq, ptq_int4_gptq
from archbench.models.vit_int4._gptq import gptq, rounded
from archbench.models.vit_int4._layers import QuantLinear, calibrate, linears, quantised
from archbench.models.vit_int4._plan import FLOAT, Bits, Plan
from archbench.models.vit_int4._quantiser import WeightQuantiser
from archbench.models.vit_int4._vit import Size, VisionTransformer
from archbench.track import Unavailable

N, K, S = 64, 96, 4000


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights (N, K), and H of inputs of which ten directions explain most."""
    generator = torch.Generator().manual_seed(seed)
    weight, few, mixing, noise = (
        torch.randn(*shape, generator=generator) for shape in ((N, K), (S, 10), (10, K), (S, K))
    )
    inputs = (few @ mixing + 0.5 * noise) * torch.linspace(0.5, 2.0, K)
    return weight, inputs.T @ inputs / S


def wide(weight: Tensor, group: int = 0) -> WeightQuantiser:
    """Steps that leave room above the largest weight: nothing is clipped, errors are uniform."""
    quantiser = WeightQuantiser(weight, 4, group, "rows")
    with torch.no_grad():
        quantiser.log_step += 0.4
    return quantiser


def error(hessian: Tensor, before: Tensor, after: Tensor) -> float:
    """Of the outputs, squared, a sample."""
    difference = (after.detach() - before).double()
    return float((difference @ hessian.double() * difference).sum())


@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_what_the_columns_to_come_cannot_explain(seed: int) -> None:
    weight, hessian = drawn(seed)
    quantiser = wide(weight)
    order = hessian.diagonal().argsort(descending=True)
    sorted_ = hessian[order][:, order].double()
    sorted_ += 0.01 * sorted_.diagonal().mean() * torch.eye(K)
    left = [sorted_[k, k] - sorted_[k, k + 1 :] @ torch.linalg.solve(sorted_[k + 1 :, k + 1 :], sorted_[k + 1 :, k])
            for k in range(K)]  # fmt: skip
    damped = hessian.double() + 0.01 * hessian.diagonal().mean() * torch.eye(K)
    squares = quantiser.step.double().square().sum() / 12
    by_gptq, by_rounding = (
        error(damped, weight, after) for after in (gptq(weight, hessian, quantiser), quantiser(weight))
    )
    assert by_gptq == pytest.approx(float(squares * sum(left)), rel=0.05)
    assert by_rounding == pytest.approx(float(squares * damped.trace()), rel=0.15)  # ten directions decide it
    assert by_gptq < by_rounding / 5


@pytest.mark.parametrize("group", [0, 32])
def test_inputs_that_say_nothing_of_each_other_are_rounded(group: int) -> None:
    weight, _ = drawn()
    quantiser = WeightQuantiser(weight, 4, group)
    torch.testing.assert_close(gptq(weight, 3 * torch.eye(K), quantiser), quantiser(weight), rtol=0, atol=1e-6)


def test_every_weight_is_on_a_level_of_its_group() -> None:
    weight, hessian = drawn()
    weight[:, 32:64] *= 100
    quantiser = WeightQuantiser(weight, 4, 32)
    found = gptq(weight, hessian, quantiser)
    assert not torch.equal(found, quantiser(weight))
    torch.testing.assert_close(quantiser(found), found, rtol=1e-6, atol=0)
    levels = found.reshape(N, 3, 32) / quantiser.step.view(N, 3, 1)
    assert (levels - levels.round()).abs().max() < 1e-4
    assert levels.round().min() >= -8
    assert levels.round().max() <= 7


def test_an_input_that_is_always_0_is_rounded_and_changes_nothing() -> None:
    weight, hessian = drawn()
    dead = torch.arange(0, K, 7)
    hessian[dead], hessian[:, dead] = 0, 0
    quantiser, other = wide(weight), weight.clone()
    other[:, dead] *= -0.5
    alive = torch.ones(K, dtype=torch.bool)
    alive[dead] = False
    found, again = gptq(weight, hessian, quantiser), gptq(other, hessian, quantiser)
    torch.testing.assert_close(found[:, dead], quantiser(weight)[:, dead], rtol=0, atol=1e-6)
    assert torch.equal(found[:, alive], again[:, alive])


def test_no_inputs_at_all_is_rounding() -> None:
    weight, hessian = drawn()
    quantiser = WeightQuantiser(weight, 4)
    torch.testing.assert_close(gptq(weight, 0 * hessian, quantiser), quantiser(weight), rtol=0, atol=1e-6)


@pytest.mark.parametrize("block", [1, 7, K])
def test_how_many_columns_go_at_once_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = drawn()
    quantiser = WeightQuantiser(weight, 4, 32)
    monkeypatch.setattr(_gptq, "BLOCK", 32)
    found = gptq(weight, hessian, quantiser)
    monkeypatch.setattr(_gptq, "BLOCK", block)
    torch.testing.assert_close(gptq(weight, hessian, quantiser), found, rtol=0, atol=1e-6)


def test_groups_that_do_not_divide_the_inputs_are_refused() -> None:
    model = VisionTransformer(Size(32, 8, 48, 1, 2, 10))
    with pytest.raises(ValueError, match="groups of 32 do not divide 48 inputs"):
        rounded(model, torch.zeros(2, 3, 32, 32), Plan(Bits(4, FLOAT, 32)))
    with pytest.raises(Unavailable, match="48 features"):
        ptq_int4_gptq.CONTENDER.build(VitCase("mnist", images=64, patch=14, dim=48, batch=16))


def test_a_network_answers_more_like_the_float_one_than_by_rounding() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer(Size(32, 8, 32, 2, 2, 10)).eval()
        with torch.no_grad():
            for linear in (linear for _, _, linear in linears(model)):
                linear.weight.normal_(std=linear.in_features**-0.5)
        images, others = torch.randn(2, 64, 3, 32, 32)
    plan = Plan(Bits(4, FLOAT, 32), Bits(8, 8))
    by_gptq, by_rounding = rounded(model, images, plan), quantised(model, plan).eval()
    calibrate(by_rounding, images)
    with torch.no_grad():
        wanted = model(others)
        distances = [float((each(others) - wanted).norm()) for each in (by_gptq, by_rounding)]
    assert distances[0] < 0.9 * distances[1]
    for _, name, layer in linears(by_gptq):
        assert isinstance(layer, QuantLinear)
        assert layer.weights is not None
        if name != "head":
            torch.testing.assert_close(layer.weights(layer.weight), layer.weight, rtol=1e-5, atol=0)
