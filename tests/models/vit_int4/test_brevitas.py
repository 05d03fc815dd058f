"""Brevitas' layers: they start near the float network, learn, and leave the same numbers in layers of the track."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")
pytest.importorskip("brevitas", reason="no Brevitas installed")

from torch import Tensor, nn

from archbench.models._train_step import decay_groups
from archbench.models.vit_int4 import VitCase, qat_w4a4_brevitas, qat_w4a8_brevitas
from archbench.models.vit_int4._brevitas import converted, finished
from archbench.models.vit_int4._layers import QuantLinear, QuantMix, linears, quantisers
from archbench.models.vit_int4._plan import Bits, Plan
from archbench.models.vit_int4._vit import VisionTransformer
from small_vit import answers, small_images, small_network, trained_on

PLAN = Plan(Bits(4, 4), Bits(8, 8), attention=4, nonlinear=4)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return small_images()


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    return small_network()


@pytest.fixture(scope="module")
def start(model: VisionTransformer, images: Tensor) -> VisionTransformer:
    return converted(model, images, PLAN)


@pytest.fixture(scope="module")
def losses_and_trained(start: VisionTransformer, images: Tensor) -> tuple[list[float], nn.Module]:
    return trained_on(start, images)


def test_calibrated_it_answers_as_the_float_network_does_but_for_rounding(
    model: VisionTransformer, start: VisionTransformer, images: Tensor
) -> None:
    wanted = answers(model, images)
    distance = float((answers(start, images) - wanted).norm() / wanted.norm())
    assert 0.01 < distance < 0.5
    finer = converted(model, images, Plan(Bits(8, 8), Bits(8, 8)))
    assert float((answers(finer, images) - wanted).norm() / wanted.norm()) < 0.03


def test_it_learns_ranges_too_and_they_do_not_decay(
    start: VisionTransformer, losses_and_trained: tuple[list[float], nn.Module]
) -> None:
    losses, trained = losses_and_trained
    assert losses[-1] < 0.6 * losses[0]
    before, after = dict(start.named_parameters()), dict(trained.named_parameters())
    ranges = [name for name in after if "scaling_impl" in name]
    # Of weights and inputs of ten layers; of the operands, scores and GELU inputs of two blocks.
    assert len(ranges) == 2 * (2 * 4 + 2) + 2 * 6
    assert not [name for name in ranges if torch.equal(before[name], after[name])]
    decaying = {id(parameter) for parameter in decay_groups(trained, 0.05)[0]["params"]}
    names = [name for name, parameter in after.items() if id(parameter) in decaying]
    assert [name for name in names if not name.endswith(("weight", "cls_token", "pos_embed"))] == []


def test_finished_it_answers_the_same_from_layers_of_the_track(
    losses_and_trained: tuple[list[float], nn.Module], images: Tensor
) -> None:
    trained = losses_and_trained[1]
    wanted = answers(trained, images)
    found = finished(trained).eval()
    assert not [name for name, module in found.named_modules() if "brevitas" in type(module).__module__]
    assert len([module for module in found.modules() if isinstance(module, (QuantLinear, QuantMix))]) == 12
    same_as(answers(found, images), wanted)
    assert torch.equal(answers(trained, images), wanted)  # the trained network is left as it was


def same_as(found: Tensor, wanted: Tensor) -> None:
    """Equal, but for images where a number so near the middle of two levels was met that it fell on the other side."""
    differences = (found - wanted).abs().amax(1) / wanted.abs().max()
    assert (differences < 1e-4).float().mean() >= 0.9
    assert differences.max() < 0.2


def test_levels_are_those_of_the_bits(losses_and_trained: tuple[list[float], nn.Module]) -> None:
    found: Any = finished(losses_and_trained[1])
    for _, name, layer in linears(found):
        assert isinstance(layer, QuantLinear)
        assert layer.weights is not None
        assert layer.inputs is not None
        assert (layer.weights.bits, layer.inputs.bits) == ((8, 8) if name == "head" else (4, 4))
        assert int(layer.weights.codes(layer.weight).abs().max()) <= (127 if name == "head" else 7)
        torch.testing.assert_close(layer.weights(layer.weight), layer.weight, rtol=1e-5, atol=1e-7)
    for quantiser in quantisers(found):
        assert quantiser.zero.item() in range(int(quantiser.high) + 1)


@pytest.mark.parametrize(("contender", "bits"), [(qat_w4a4_brevitas, 4), (qat_w4a8_brevitas, 8)])
def test_the_contenders_round_what_their_case_does_not_leave_in_floating_point(
    contender: Any, bits: int, model: VisionTransformer, images: Tensor
) -> None:
    method = contender.CONTENDER.build(VitCase(edges=32, attention=32, nonlinear=32))
    assert method.trains
    assert method.bits == Bits(4, bits)
    found = method.finish(method.convert(model, images))
    assert found.blocks[1].mlp.fc2.inputs.bits == bits
    assert type(found.patch_embed) is type(model.patch_embed)
    assert found.head.weights is None
    assert torch.equal(found.head.weight, model.head.weight)
    assert not [module for module in found.modules() if isinstance(module, QuantMix)]
