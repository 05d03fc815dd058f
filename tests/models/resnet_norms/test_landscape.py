"""The look along the gradient: a quadratic knows the answer, and a training that is looked at does not notice."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.models.resnet_norms._landscape import along_the_gradient
from archbench.models.resnet_norms._model import ResNet18

CURVATURES = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)


class Point(nn.Module):
    """Weights without a network."""

    def __init__(self, at: list[float]) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at, dtype=torch.float64))


def bowl(point: nn.Module) -> Tensor:
    """``sum a x^2 / 2``: the gradient is ``a x``, after a step t it is ``a (1 - t a) x``."""
    assert isinstance(point, Point)
    return (CURVATURES * point.at.square()).sum() / 2


@pytest.mark.parametrize("lengths", [(0.1,), (0.1, 0.2, 0.3), (0.05, 1.0)], ids=["down", "down and up", "beyond"])
def test_a_quadratic_knows_the_answer(lengths: tuple[float, ...]) -> None:
    at = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    gradient = CURVATURES * at
    losses = [float((CURVATURES * (at - t * gradient).square()).sum() / 2) for t in (0.0, *lengths)]
    found = along_the_gradient(Point(at.tolist()), bowl, lengths)
    change = max(lengths) * float((CURVATURES * gradient).norm() / gradient.norm())
    assert found == pytest.approx(((max(losses) - min(losses)) / losses[0], change), rel=1e-12)


def test_a_plane_has_no_curvature() -> None:
    loss_range, change = along_the_gradient(Point([1.0, 2.0, 2.0]), lambda point: point.at.sum(), (0.5, 1.0))  # type: ignore[operator, union-attr]
    assert loss_range == pytest.approx(3 / 5)
    assert change == 0


def test_a_loss_of_zero_and_a_gradient_of_zero_are_no_error() -> None:
    loss_range, change = along_the_gradient(Point([0.0, 0.0, 0.0]), bowl, (1.0,))
    assert math.isnan(loss_range)
    assert math.isnan(change)


@pytest.mark.parametrize("lost_at", [1, 2, 3])
def test_a_loss_that_is_lost_anywhere_on_the_way_is_not_overlooked(lost_at: int) -> None:
    calls = iter(range(10))

    def loss(point: nn.Module) -> Tensor:
        return bowl(point) * (math.nan if next(calls) == lost_at else 1.0)

    assert all(map(math.isnan, along_the_gradient(Point([1.0, 1.0, 1.0]), loss, (0.1, 0.2, 0.3))))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("breaks", [False, True])
def test_weights_buffers_gradients_and_mode_are_as_they_were(training: bool, breaks: bool) -> None:
    torch.manual_seed(0)
    model = ResNet18("batch", classes=10, width=4).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x_NCHW, labels_N = torch.randn(4, 3, 32, 32), torch.arange(4)
    F.cross_entropy(model(x_NCHW), labels_N).backward()
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    strides = {name: tensor.stride() for name, tensor in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    seen = []

    def loss(looked_at: nn.Module) -> Tensor:
        seen.append((looked_at.training, looked_at.get_buffer("stem.1.running_mean").clone()))
        if breaks and len(seen) == 2:
            raise RuntimeError("out of memory")
        return F.cross_entropy(looked_at(x_NCHW), labels_N)

    with torch.no_grad():  # as the loop evaluates
        if breaks:
            with pytest.raises(RuntimeError, match="out of memory"):
                along_the_gradient(model, loss, (0.1, 10.0))
        else:
            assert along_the_gradient(model, loss, (0.1, 10.0))[0] > 0
    after = model.state_dict()
    assert len(gradients) == len(list(model.parameters()))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name: tensor.stride() for name, tensor in after.items()} == strides
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True) if p.grad is not None)
    assert model.training == training
    # Each look is in training mode, and starts from the same running statistics.
    assert all(mode and torch.equal(mean, before["stem.1.running_mean"]) for mode, mean in seen)
