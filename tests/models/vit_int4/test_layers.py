"""Networks with rounded operands: what is replaced, what stays, and how far 8 bits are from none."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from archbench.models.vit_int4._layers import QuantLinear, QuantMix, QuantPatchEmbed, calibrate, quantised, quantisers
from archbench.models.vit_int4._plan import FLOAT, Bits, Plan
from archbench.models.vit_int4._vit import Size, VisionTransformer

SIZE = Size(image=16, patch=4, dim=32, depth=2, heads=2, classes=7)


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    torch.manual_seed(3)
    return VisionTransformer(SIZE).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(4))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def rounded(model: VisionTransformer, images: torch.Tensor, plan: Plan) -> torch.Tensor:
    other = quantised(model, plan)
    calibrate(other, images)
    with torch.no_grad():
        return other(images)


@torch.no_grad()
def test_a_plan_without_bits_changes_nothing(model: VisionTransformer, images: torch.Tensor) -> None:
    torch.testing.assert_close(rounded(model, images, Plan()), model(images), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "plan",
    [Plan(Bits(8, 8)), Plan(edges=Bits(8, 8)), Plan(attention=8), Plan(nonlinear=8)],
    ids=["blocks", "edges", "attention", "nonlinear"],
)
def test_each_part_in_8_bits_is_near_the_float_network_and_not_it(
    plan: Plan, model: VisionTransformer, images: torch.Tensor
) -> None:
    error = relative(rounded(model, images, plan), model(images))
    assert 1e-5 < error < 0.05


@torch.no_grad()
def test_fewer_bits_err_more(model: VisionTransformer, images: torch.Tensor) -> None:
    errors = [relative(rounded(model, images, Plan(Bits(bits, bits))), model(images)) for bits in (8, 6, 4, 3)]
    assert errors == sorted(errors)
    assert errors[2] > 4 * errors[0]


def test_what_the_plan_names_is_replaced(model: VisionTransformer) -> None:
    other = quantised(model, Plan(Bits(4, 4), Bits(8, 8), attention=4, nonlinear=4))
    matrices = [module for module in other.modules() if isinstance(module, QuantLinear)]
    assert [module.weights.bits for module in matrices if module.weights] == [8] + [4] * 4 * SIZE.depth + [8]
    assert isinstance(other.patch_embed, QuantPatchEmbed)
    assert sum(isinstance(module, QuantMix) for module in other.modules()) == SIZE.depth
    assert len(list(quantisers(other))) == 2 + (4 + 4 + 2) * SIZE.depth


def test_the_float_network_is_left_alone(model: VisionTransformer, images: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = quantised(model, Plan(Bits(4, 4), Bits(8, 8)))
    calibrate(other, images)
    other(images).sum().backward()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_all_of_it_can_be_trained(model: VisionTransformer, images: torch.Tensor) -> None:
    other = quantised(model, Plan(Bits(4, 4), Bits(4, 4), 4, 4))
    calibrate(other, images)
    other(images).square().sum().backward()
    still = [name for name, p in other.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 0)]
    assert [name for name in still if not name.endswith(".zero")] == []  # a zero learns from what is clipped alone


def test_calibration_ends(model: VisionTransformer, images: torch.Tensor) -> None:
    other = quantised(model, Plan(Bits(4, 4)))
    calibrate(other, images)
    steps = [float(each.step.detach()) for each in quantisers(other)]
    other(10 * images)
    assert [float(each.step.detach()) for each in quantisers(other)] == steps
    assert min(steps) > 0


def test_weights_alone(model: VisionTransformer) -> None:
    other = quantised(model, Plan(Bits(4, FLOAT, 32), Bits(8)))
    assert list(quantisers(other)) == []
