"""The training loop as a whole: what a history says, what follows from the seed, what is refused before training."""

from __future__ import annotations

import io
import math
import random
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.models.train import History, Recipe, Step, fit, seeded

X = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()


def batches(step: int) -> tuple[Tensor, ...]:
    rows = torch.randint(0, len(X), (32,), generator=torch.Generator().manual_seed(step))
    return X[rows], Y[rows]


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def evaluate(model: nn.Module) -> dict[str, float]:
    assert not model.training
    assert not torch.is_grad_enabled()
    out = model(X)
    return {"test_error": float((out.argmax(1) != Y).float().mean()), "test_loss": float(F.cross_entropy(out, Y))}


def no_error(model: nn.Module) -> dict[str, float]:
    return {"test_error": 0.0}


def network(seed: int = 0) -> nn.Module:
    with seeded(seed):
        return nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2))


def train(recipe: Recipe, seed: int = 1, **changes: Any) -> tuple[History, nn.Module]:
    model = changes.pop("model", None) or network()
    given = {"loss": loss, "batches": batches, "evaluate": evaluate} | changes
    history = fit(model, recipe=recipe, seed=seed, **given)
    return history, model


RECIPE = Recipe(steps=60, lr=0.1, warmup_steps=5, weight_decay=1e-3, eval_every=20, target_error=0.25)


def test_it_learns_and_says_so() -> None:
    history, model = train(replace(RECIPE, steps=200))
    assert history.curves["test_error"][0][1] > 0.35
    assert history.test_error is not None
    assert history.test_error < 0.2
    with torch.no_grad():
        assert history.test_error == evaluate(model)["test_error"]  # the model is left as it was evaluated
    assert history.best_test_error == min(value for _, value in history.curves["test_error"])
    assert [step for step, _ in history.curves["loss"]] == [1, *range(10, 201, 10)]
    assert [step for step, _ in history.curves["test_loss"]] == [0, *range(20, 201, 20)]
    assert {"loss", "grad_norm", "update_ratio", "lr", "samples_per_s", "step_s"} < history.curves.keys()
    assert history.step_s > 0
    assert 0 < history.input_bound < 1
    assert (history.steps, history.diverged, history.events) == (200, False, [])
    numbers = history.scalars()
    assert numbers["test_error"] == history.test_error
    assert numbers["seconds_to_target"] < numbers["train_s"]
    assert all(isinstance(value, float) and math.isfinite(value) for value in numbers.values())


def test_time_to_target_is_taken_at_the_first_evaluation_that_reaches_it() -> None:
    errors = iter([0.9, 0.5, 0.3, 0.29, 0.1, 0.4])
    recipe = replace(RECIPE, steps=50, eval_every=10, target_error=0.3)
    history, _ = train(recipe, evaluate=lambda model: {"test_error": next(errors)})
    assert history.steps_to_target == 20
    assert history.seconds_to_target is not None
    assert 0 < history.seconds_to_target < history.train_s
    assert (history.best_test_error, history.test_error) == (0.1, 0.4)
    missed, _ = train(replace(recipe, target_error=0.01), evaluate=lambda model: {"test_error": 0.2})
    assert (missed.steps_to_target, missed.seconds_to_target) == (None, None)
    assert "seconds_to_target" not in missed.scalars()


def test_an_evaluation_that_is_not_finite_is_divergence() -> None:
    values = iter([0.5, math.nan])
    history, _ = train(RECIPE, evaluate=lambda model: {"test_error": 0.5, "test_loss": next(values)})
    assert history.diverged_at == history.steps == 20
    assert history.curves["test_loss"] == [(0.0, 0.5)]


def test_the_same_seed_twice_gives_the_same_bits_and_another_one_does_not() -> None:
    recipe = replace(RECIPE, ema_decay=0.9, clip_norm=1.0)
    (one, first), (two, second), (_, third) = train(recipe), train(recipe), train(recipe, seed=2)
    for name in ("loss", "grad_norm", "update_ratio", "test_error", "test_loss"):
        assert one.curves[name] == two.curves[name]
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[0].weight, third[0].weight)  # dropout


def test_evaluations_and_logs_do_not_touch_the_training() -> None:
    def greedy(model: nn.Module) -> dict[str, float]:
        torch.rand(3), np.random.rand(), random.random()
        return evaluate(model)

    _, rarely = train(replace(RECIPE, eval_every=None, log_every=60))
    _, often = train(replace(RECIPE, eval_every=3, log_every=1), evaluate=greedy)
    assert all(torch.equal(a, b) for a, b in zip(rarely.parameters(), often.parameters(), strict=True))


def test_random_numbers_follow_the_seed_and_are_left_as_they_were() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    with seeded(7):
        expected, then = draw(), draw()
    with seeded(7):
        assert draw() == expected
        train(replace(RECIPE, steps=5))
        assert draw() == then


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_bf16_trains_near_fp32_and_not_in_it(optimizer: str) -> None:
    recipe = replace(RECIPE, optimizer=optimizer, lr=0.01, log_every=1)
    (full, _), (half, model) = train(recipe), train(replace(recipe, precision="bf16"))
    assert model[0].weight.dtype == torch.float32
    pairs = [(a, b) for (_, a), (_, b) in zip(full.curves["loss"], half.curves["loss"], strict=True)]
    assert pairs[0][0] != pairs[0][1]
    assert all(abs(a - b) < 0.02 for a, b in pairs)


def test_channels_last_reaches_model_and_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    layouts: list[bool] = []

    def watch(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(m(x), y)

    recipe = Recipe(steps=2, lr=0.1, channels_last=True)
    data = (torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))
    train(recipe, model=model, loss=watch, batches=lambda step: data, evaluate=no_error)
    assert layouts == [True, True]
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_waiting_is_what_the_batches_say_it_was() -> None:
    class Prefetched:
        waited_s = 100.0

        def __call__(self, step: int) -> tuple[Tensor, ...]:
            self.waited_s += 0.25
            return batches(step)

    history, _ = train(replace(RECIPE, steps=5), batches=Prefetched())
    assert history.waited_s == pytest.approx(4 * 0.25)  # the first batch is there before the clock starts


def test_frozen_parameters_stay_and_a_model_of_none_is_refused() -> None:
    model = network()
    frozen = model[0].weight.detach().clone()
    model[0].requires_grad_(False)
    train(RECIPE, model=model)
    assert torch.equal(model[0].weight, frozen)
    for parameters in (nn.ReLU(), model.requires_grad_(False)):
        with pytest.raises(ValueError, match="no parameter that requires a gradient"):
            train(RECIPE, model=parameters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0, must be at least 1"),
        ({"log_every": 0}, "log_every is 0"),
        ({"eval_every": 0}, "eval_every is 0"),
        ({"warmup_steps": 61}, "warmup_steps is 61, more than the 60 steps"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"lr": math.nan}, "lr is nan"),
        ({"clip_norm": 0.0}, r"clip_norm is 0\.0"),
        ({"lr_floor": 2.0}, r"lr_floor is 2\.0"),
        ({"ema_decay": 1.0}, r"ema_decay is 1\.0"),
        ({"optimizer": "adam"}, "optimizer is 'adam', must be one of sgd, adamw"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
    ],
)
def test_a_recipe_that_makes_no_run_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": lambda m, x, y: m(x).sum() * math.nan}, "the first loss is nan"),
        ({"loss": lambda m, x, y: m(x)}, r"shape \(32, 2\), expected a scalar"),
        ({"loss": lambda m, x, y: torch.ones(())}, r"expected a scalar that depends on the model"),
        ({"batches": lambda step: X}, "returned Tensor, expected a tuple of tensors"),
        ({"batches": lambda step: (X.to("meta"), Y)}, r"batches\(0\) is on meta, the model on cpu"),
        ({"evaluate": lambda m: {"error": 0.1}}, "evaluate returned error: test_error is missing"),
        ({"evaluate": lambda m: {"test_error": 12.5}}, r"test_error = 12\.5, must be a fraction"),
        ({"evaluate": lambda m: {"test_error": math.nan}}, "test_error = nan before the first update"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
    ],
)
def test_a_mistake_is_named_before_the_first_update(change: dict[str, Any], message: str) -> None:
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=message):
        train(RECIPE, model=model, **change)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_fp16_is_refused_without_cuda() -> None:
    with pytest.raises(ValueError, match="fp16 with a scaled loss trains on CUDA only"):
        train(replace(RECIPE, precision="fp16"))


class Terminal(io.StringIO):
    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


@pytest.mark.parametrize(("tty", "wanted"), [(True, True), (True, False), (False, True)])
def test_a_bar_with_the_remaining_time_on_a_terminal_only(
    tty: bool, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal(tty))
    train(RECIPE, progress=wanted)
    text = sys.stderr.getvalue()
    assert ("60/60" in text and "0:00:00" in text and "loss" in text) == (tty and wanted)
    assert (tty and wanted) or text == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_trains_without_waiting_between_log_steps(precision: str) -> None:
    recipe = replace(RECIPE, precision=precision, clip_norm=1.0, ema_decay=0.9)
    step = Step(network().train(), loss, recipe, "cuda")
    data = tuple(tensor.cuda() for tensor in batches(0))
    step(*data)  # the first loss is checked, which waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step(*data, watch=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    history, _ = train(recipe, device="cuda", evaluate=no_error)
    assert history.curves["loss"][-1][1] < history.curves["loss"][0][1]
