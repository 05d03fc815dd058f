"""One update against answers known by hand: schedule, momentum, decay, average, clipping, norms, divergence."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.models.train import History, Recipe, Step, fit, learning_rate, seeded


class Line(nn.Module):
    """The linear form ``w . x``, whose gradient is the mean of its inputs."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weights]))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT


def rise(step: int) -> tuple[Tensor, ...]:
    return (torch.tensor([[3.0, 4.0], [3.0, 4.0]]),)


def mean_output(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).mean()


def no_error(model: nn.Module) -> dict[str, float]:
    return {"test_error": 0.0}


def train_line(recipe: Recipe, weights: list[float], **changes: Any) -> tuple[History, Tensor]:
    model = Line(weights)
    given = {"loss": mean_output, "batches": rise, "evaluate": no_error} | changes
    return fit(model, recipe=recipe, seed=1, **given), model.weight.detach()[0]


class Network(nn.Module):
    """A layer of each kind that a step treats in its own way: a matrix, statistics of a batch, dropout."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0):
            self.matrix = nn.Linear(6, 16)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.norm(self.matrix(x)), 0.2, self.training).square().mean(1)


def normal(step: int) -> Tensor:
    return torch.randn(32, 6, generator=torch.Generator().manual_seed(step))


def test_the_schedule_at_given_steps() -> None:
    recipe = Recipe(steps=110, lr=0.8, warmup_steps=10, lr_floor=0.25)
    rates = [learning_rate(recipe, step) for step in (0, 4, 9, 10, 35, 60, 85)]
    quarter = 0.5 * (1 + math.sqrt(0.5))
    expected = [0.08, 0.4, 0.8, 0.8, 0.2 + 0.6 * quarter, 0.5, 0.2 + 0.6 * (1 - quarter)]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert learning_rate(recipe, 109) == pytest.approx(0.2, abs=2e-4)
    assert {learning_rate(replace(recipe, lr_floor=1.0, warmup_steps=0), step) for step in range(110)} == {0.8}
    assert learning_rate(Recipe(steps=3, lr=0.3, warmup_steps=3), 2) == pytest.approx(0.3)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, True), (0.9, False), (0.9, True)])
def test_sgd_by_hand(momentum: float, nesterov: bool) -> None:
    recipe = Recipe(steps=5, lr=0.5, momentum=momentum, nesterov=nesterov, divergence_factor=None)
    _, weight = train_line(recipe, [1.0, 1.0])
    velocity, expected = 0.0, 1.0
    for step in range(5):
        velocity = momentum * velocity + 3.0
        expected -= learning_rate(recipe, step) * (3.0 + momentum * velocity if nesterov and momentum else velocity)
    assert float(weight[0]) == pytest.approx(expected, rel=1e-5)


def test_adamw_decays_matrices_and_neither_biases_nor_norms() -> None:
    """With a gradient of zero AdamW only decays: every weight shrinks by the product of 1 - lr * decay, or stays."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.LayerNorm([3, 4, 4]), nn.GroupNorm(1, 3), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
    recipe = Recipe(steps=4, lr=0.1, optimizer="adamw", weight_decay=0.5)
    ones = (torch.ones(2, 3, 4, 4),)
    fit(model, lambda m, x: 0.0 * m(x).sum() + 1.0, lambda step: ones, no_error, recipe, seed=1)
    left = 2.0 * math.prod(1 - 0.5 * learning_rate(recipe, step) for step in range(4))
    for name, parameter in model.named_parameters():
        expected = left if name in ("0.weight", "3.weight") else 2.0
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, expected), msg=name)


def test_the_average_follows_its_recurrence() -> None:
    """Weights fall by lr * gradient; their average, recomputed in float64, is what is evaluated and left behind."""
    recipe = Recipe(steps=40, lr=0.01, momentum=0.0, lr_floor=1.0, ema_decay=0.8, eval_every=1, divergence_factor=None)
    seen: list[float] = []

    def look(model: nn.Module) -> dict[str, float]:
        seen.append(float(model.weight[0, 0]))
        return {"test_error": 0.0}

    _, weight = train_line(recipe, [1.0, 1.0], evaluate=look)
    raw = average = 1.0
    expected = [average]
    for update in range(1, 41):
        raw -= 0.01 * 3.0
        decay = min(0.8, (1 + update) / (10 + update))
        average = decay * average + (1 - decay) * raw
        expected.append(average)
    np.testing.assert_allclose(seen, expected, atol=2e-6)
    assert float(weight[0]) == seen[-1]
    assert abs(seen[-1] - raw) > 0.05


def test_the_average_of_batch_statistics_and_counters() -> None:
    step = Step(Network(), mean_output, Recipe(steps=9, lr=0.1, ema_decay=0.5))
    first = step.model.norm.running_mean.clone()
    for number in range(3):
        step(normal(number))
    raw = step.model.norm.running_mean.clone()
    with step.averaged():
        inside = step.model.norm.running_mean
        assert not torch.equal(inside, raw)
        assert not torch.equal(inside, first)
        assert int(step.model.norm.num_batches_tracked) == 3
    assert torch.equal(step.model.norm.running_mean, raw)


def test_clipping_keeps_the_direction_and_the_telemetry_the_norm_before() -> None:
    recipe = Recipe(steps=1, lr=1.0, momentum=0.0, clip_norm=2.5)
    history, weight = train_line(recipe, [1.0, 2.0])
    assert history.curves["grad_norm"] == [(1.0, pytest.approx(5.0))]  # the gradient is (3, 4)
    torch.testing.assert_close(weight, torch.tensor([1.0 - 1.5, 2.0 - 2.0]))
    assert history.curves["update_ratio"] == [(1.0, pytest.approx(2.5 / math.sqrt(5.0)))]
    _, free = train_line(replace(recipe, clip_norm=5.1), [1.0, 2.0])
    torch.testing.assert_close(free, torch.tensor([1.0 - 3.0, 2.0 - 4.0]))


def test_the_norms_are_those_of_autograd() -> None:
    model = Network()
    step = Step(model, mean_output, Recipe(steps=1, lr=0.05))
    before = [parameter.detach().clone().double() for parameter in model.parameters()]
    with seeded(5):
        grads = torch.autograd.grad(mean_output(model, normal(0)), list(model.parameters()))
    with seeded(5):
        step(normal(0), watch=True)
    changes = [parameter.detach().double() - old for parameter, old in zip(model.parameters(), before, strict=True)]
    expected = [math.sqrt(sum(float((t.double() ** 2).sum()) for t in group)) for group in (grads, changes, before)]
    assert [float(value) for value in step.watched] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("bad", "factor"), [(math.nan, None), (math.inf, None), (30.0, 10.0)])
def test_a_diverging_run_stops_and_says_where(bad: float, factor: float | None) -> None:
    """The seventh loss is bad; it is read at the next log step, and named."""
    called: list[int] = []

    def numbered(step: int) -> tuple[Tensor, ...]:
        called.append(step)
        return torch.ones(1, 2) * (bad if step == 6 else 1.0), torch.zeros(1)

    recipe = Recipe(steps=100, lr=1e-6, log_every=5, eval_every=50, divergence_factor=factor)
    history, _ = train_line(recipe, [1.0, 1.0], batches=numbered, loss=lambda m, x, _: m(x).mean())
    assert history.diverged_at == 7
    assert called[-1] == 9  # nothing after the tenth update
    assert history.test_error is None
    assert history.scalars()["diverged"] == 1.0
    assert "test_error" not in history.scalars()


def test_weights_of_zero_have_no_update_ratio() -> None:
    history, _ = train_line(Recipe(steps=2, lr=0.1, log_every=1, divergence_factor=None), [0.0, 0.0])
    assert [step for step, _ in history.curves["update_ratio"]] == [2.0]
