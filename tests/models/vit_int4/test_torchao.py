"""torchao's exported graph: it starts near the float network, learns, and leaves its numbers in layers of the track."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")
pytest.importorskip("torchao", reason="no torchao installed")

from torch import Tensor, nn

from archbench.models._train_step import decay_groups
from archbench.models.vit_int4 import VitCase, qat_w4a4_torchao
from archbench.models.vit_int4._layers import QuantLinear, QuantMix, linears, quantisers
from archbench.models.vit_int4._plan import Bits, Plan
from archbench.models.vit_int4._torchao import Exported, converted, finished
from archbench.models.vit_int4._vit import VisionTransformer
from small_vit import answers, small_images, small_network, trained_on

PLAN = Plan(Bits(4, 4), Bits(8, 8), attention=4)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return small_images()


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    return small_network()


@pytest.fixture(scope="module")
def start(model: VisionTransformer, images: Tensor) -> Exported:
    return converted(model, images, PLAN)


@pytest.fixture(scope="module")
def losses_and_trained(start: Exported, images: Tensor) -> tuple[list[float], nn.Module]:
    return trained_on(start, images)


def test_calibrated_it_answers_as_the_float_network_does_but_for_rounding(
    model: VisionTransformer, start: Exported, images: Tensor
) -> None:
    wanted = answers(model, images)
    distance = float((answers(start, images) - wanted).norm() / wanted.norm())
    assert 0.01 < distance < 0.5
    assert torch.equal(answers(start, images), answers(start, images))


def test_it_takes_any_number_of_images_and_knows_no_modes(start: Exported, images: Tensor) -> None:
    wanted = answers(start, images)
    for count in (1, 2, 5):
        torch.testing.assert_close(answers(start.train(), images[:count]), wanted[:count], rtol=0, atol=1e-5)
    assert start.training
    assert not start.eval().training


def test_it_learns_steps_and_zero_points_and_they_do_not_decay(
    start: Exported, losses_and_trained: tuple[list[float], nn.Module]
) -> None:
    losses, trained = losses_and_trained
    assert losses[-1] < 0.6 * losses[0]
    before, after = dict(start.named_parameters()), dict(trained.named_parameters())
    for kind in ("scale.original", "zero_point"):
        learned = [name for name in after if name.endswith(kind)]
        assert len(learned) == 10 + 2 * 4  # of ten layers' inputs, of attention's operands
        assert [name for name in learned if not torch.equal(before[name], after[name])]
        assert all(after[name].ndim < 2 for name in learned)
    decaying = {id(parameter) for parameter in decay_groups(trained, 0.05)[0]["params"]}
    names = [name for name, parameter in after.items() if id(parameter) in decaying]
    assert [name for name in names if not name.endswith(("weight", "cls_token", "pos_embed"))] == []


def test_finished_it_answers_the_same_from_layers_of_the_track(
    losses_and_trained: tuple[list[float], nn.Module], images: Tensor
) -> None:
    trained = losses_and_trained[1]
    wanted = answers(trained, images)
    found = finished(trained).eval()
    assert type(found) is VisionTransformer
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
        assert int(layer.weights.codes(layer.weight).abs().max()) <= (128 if name == "head" else 8)
        torch.testing.assert_close(layer.weights(layer.weight), layer.weight, rtol=1e-5, atol=1e-7)
    for quantiser in quantisers(found):
        assert quantiser.zero.item() in range(int(quantiser.high) + 1)


def test_the_contender_rounds_to_4_bits_what_its_case_does_not_leave_in_floating_point(
    model: VisionTransformer, images: Tensor
) -> None:
    method = qat_w4a4_torchao.CONTENDER.build(VitCase(edges=32, attention=32, nonlinear=32))
    assert method.trains
    assert method.bits == Bits(4, 4)
    found: Any = method.finish(method.convert(model, images))
    assert found.blocks[1].mlp.fc2.inputs.bits == 4
    assert type(found.patch_embed) is type(model.patch_embed)
    assert found.head.weights is None
    assert torch.equal(found.head.weight, model.head.weight)
    assert not [module for module in found.modules() if isinstance(module, QuantMix)]
