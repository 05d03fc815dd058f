"""The network: its size, what each norm takes its statistics over, and how it starts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from archbench.models.resnet_norms import TRACK, ResNetCase
from archbench.models.resnet_norms._model import NORMS, ResNet18, Scale
from archbench.models.resnet_norms._workload import factory

NORMED = ("batch", "layer", "instance", "group")
# Convolutions that have no norm's gain behind them have a scalar: 20 of them, of 4,800 channels together.
CHANNELS, CONVOLUTIONS = 4800, 20
FIXUP = {"conv1.weight": 8**-0.5, "conv2.weight": 0.0, "head.weight": 0.0}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("norm", NORMED)
def test_parameters_are_those_of_the_paper(norm: str) -> None:
    assert parameters(ResNet18(norm, classes=1000, stem="imagenet")) == 11_689_512
    assert parameters(ResNet18(norm, classes=10)) == 11_173_962


def test_without_a_norm_a_scalar_stands_for_the_gains_of_a_layer() -> None:
    assert parameters(ResNet18("none", classes=10)) == 11_173_962 - CHANNELS + CONVOLUTIONS


def test_all_contenders_of_the_track_are_norms_of_the_network() -> None:
    from archbench.discovery import contender_modules

    assert set(contender_modules(TRACK.name)) == set(NORMS)


@pytest.mark.parametrize(
    ("case", "channels", "off"),
    [
        (ResNetCase("cifar10"), 3, 0.005),
        (ResNetCase("cifar10", width=8), 3, 0.03),  # the stem grows with the width, the rest with its square
        (ResNetCase("imagenet-1k"), 3, 0.07),  # the large stem is not in the formula
        (ResNetCase("mnist"), 1, 0.07),  # 28 pixels are halved to 3.5, and there are 4
    ],
    ids=lambda value: value.slug if isinstance(value, ResNetCase) else None,
)
def test_operations_of_a_case_are_those_of_its_network(case: ResNetCase, channels: int, off: float) -> None:
    size = {"cifar10": 32, "imagenet-1k": 224, "mnist": 28}[case.data]
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        model = ResNet18("none", classes=10, width=case.width, stem=case.stem, channels=channels)
        model(torch.empty(case.batch, channels, size, size))
    assert case.flops() == pytest.approx(3 * counted.get_total_flops(), rel=off)


def normalised(x_NCHW: Tensor, norm: str, groups: int) -> Tensor:
    """By definition: the mean and the variance over an index set, at 1e-5 as torch's modules have it."""
    n, c, h, w = x_NCHW.shape
    grouped, over = {
        "batch": (x_NCHW, (0, 2, 3)),
        "layer": (x_NCHW, (1, 2, 3)),
        "instance": (x_NCHW, (2, 3)),
        "group": (x_NCHW.reshape(n, groups, c // groups, h, w), (2, 3, 4)),
    }[norm]
    centred = grouped - grouped.mean(dim=over, keepdim=True)
    return (centred / (centred.square().mean(dim=over, keepdim=True) + 1e-5).sqrt()).reshape(x_NCHW.shape)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (8, 2), (64, 16), (128, 32), (256, 32)])
@pytest.mark.parametrize("norm", NORMED)
def test_a_norm_has_the_index_set_of_its_definition(norm: str, channels: int, groups: int) -> None:
    torch.manual_seed(1)
    layer = NORMS[norm](channels).double()
    gain, bias = (getattr(layer, name) for name in ("weight", "bias"))
    with torch.no_grad():
        gain.normal_()
        bias.normal_()
    x_NCHW = 3 + 2 * torch.randn(3, channels, 4, 5, dtype=torch.float64)
    expected = normalised(x_NCHW, norm, groups) * gain[:, None, None] + bias[:, None, None]
    torch.testing.assert_close(layer(x_NCHW), expected, rtol=1e-12, atol=1e-12)


def test_batch_norm_is_evaluated_with_its_running_statistics() -> None:
    layer = NORMS["batch"](4).double()
    x_NCHW = 3 + 2 * torch.randn(2, 4, 4, 4, dtype=torch.float64)
    layer(x_NCHW)
    mean, variance = 0.1 * x_NCHW.mean(dim=(0, 2, 3)), 0.9 + 0.1 * x_NCHW.var(dim=(0, 2, 3))
    expected = (x_NCHW - mean[:, None, None]) / (variance + 1e-5).sqrt()[:, None, None]
    torch.testing.assert_close(layer.eval()(x_NCHW), expected)


@pytest.mark.parametrize("norm", NORMS)
def test_only_batch_norm_looks_at_the_other_images(norm: str) -> None:
    model = factory(norm)(ResNetCase("mnist", images=64, width=8))(0).double()
    if norm == "none":
        wake(model)
    x_NCHW = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    alone, together = model(x_NCHW[:1]), model(x_NCHW)[:1]
    assert torch.allclose(alone, together, rtol=1e-10) == (norm != "batch")
    model.eval()
    torch.testing.assert_close(model(x_NCHW[:1]), model(x_NCHW)[:1])


def wake(model: nn.Module) -> None:
    """Give weights to what starts at zero, as training does."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.any():
            nn.init.kaiming_normal_(module.weight)


def test_contenders_start_from_the_same_weights() -> None:
    case = ResNetCase("cifar10", width=8)
    states = {norm: factory(norm)(case)(5).state_dict() for norm in NORMS}
    for name, tensor in states["batch"].items():
        if "conv" in name or "head" in name:
            scale = next((scale for part, scale in FIXUP.items() if part in name), 1.0)
            assert all(torch.equal(states[norm][name], tensor) for norm in NORMED)
            assert torch.equal(states["none"][name], scale * tensor)
    assert not torch.equal(factory("batch")(case)(6).head.weight, states["batch"]["head.weight"])


def test_without_a_norm_every_block_starts_as_its_shortcut() -> None:
    torch.manual_seed(0)
    model = ResNet18("none", classes=10, width=8)
    x_NCHW = model.stem(torch.randn(8, 3, 32, 32))
    deviations = [x_NCHW.std()]
    unchanged = 0
    for block in model.blocks:
        out_NCHW = block(x_NCHW)
        assert torch.equal(out_NCHW, block.shortcut(x_NCHW).relu())
        unchanged += torch.equal(out_NCHW, x_NCHW)
        x_NCHW = out_NCHW
        deviations.append(x_NCHW.std())
    assert unchanged == 5  # three of eight change the size
    assert torch.stack(deviations).min() / deviations[0] > 0.1
    assert torch.stack(deviations).max() / deviations[0] < 10


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("stem", "size"), [("cifar", 32), ("imagenet", 64)])
def test_scores_gradients_and_both_stems(norm: str, stem: str, size: int) -> None:
    torch.manual_seed(0)
    model = ResNet18(norm, classes=7, width=4, stem=stem)
    wake(model)
    scores = model(torch.randn(2, 3, size, size))
    assert scores.shape == (2, 7)
    scores.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_control_keeps_precision_and_memory_format() -> None:
    x_NCHW = torch.randn(2, 8, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    layer = Scale(8)
    with torch.no_grad():
        layer.gain.fill_(2.0)
        layer.bias.copy_(torch.arange(8.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out_NCHW = layer(x_NCHW)
    assert out_NCHW.dtype == torch.bfloat16
    assert out_NCHW.is_contiguous(memory_format=torch.channels_last)
    expected = 2 * x_NCHW.float() + torch.arange(8.0)[:, None, None]
    torch.testing.assert_close(out_NCHW.float(), expected, rtol=2**-8, atol=2**-8)
