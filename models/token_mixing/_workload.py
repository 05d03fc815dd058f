"""One training step to be timed, and whole runs for the quality.

Source: archbench.training (what a training track owes the harness)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from archbench.cells import Data
from archbench.checks import Wrong, to_float64
from archbench.models.token_mixing import TokenMixingCase
from archbench.models.token_mixing._model import Factory
from archbench.models.token_mixing._tasks import evaluate, loss, task_of
from archbench.models.train import Recipe, Step, fit
from archbench.track import Device
from archbench.training import Outcome

EVALUATIONS = 4  # in a run, besides the one before the first step
REPORTED = ("test_error", "train_s", "step_s", "input_bound")
CURVES = ("loss", "test_error", "test_loss", "grad_norm", "update_ratio", "lr")


def recipe_of(case: TokenMixingCase) -> Recipe:
    return Recipe(
        steps=case.steps,
        lr=case.lr,
        optimizer="adamw",
        betas=(0.9, 0.98),
        weight_decay=0.01,
        warmup_steps=case.steps // 10,
        clip_norm=1.0,
        eval_every=max(1, case.steps // EVALUATIONS),
        target_error=case.target,
    )


class Training:
    """A contender at a case: called, it makes one step; ``run`` makes all of them."""

    def __init__(self, case: TokenMixingCase, factory: Factory) -> None:
        self.case = case
        self.factory = factory
        self.recipe = recipe_of(case)
        self.step: Step | None = None

    def __call__(self, *batch: Tensor) -> Tensor:
        if self.step is None or self.step.device.type != batch[0].device.type:
            self.step = Step(self.factory(0), loss, self.recipe, batch[0].device.type)
        return self.step(*batch)

    def run(self, seed: int, device: Device) -> Outcome:
        task = task_of(self.case)
        tests = task.test_batches()
        history = fit(
            self.factory(seed),
            loss,
            task.batches(seed),
            lambda model: evaluate(model, tests),
            self.recipe,
            seed=seed,
            device=device,
        )
        found = history.scalars()
        metrics = {name: found[name] for name in REPORTED if name in found}
        if history.seconds_to_target is not None:
            metrics["seconds_to_target_s"] = history.seconds_to_target
        if not history.diverged:
            metrics["test_loss"] = history.curves["test_loss"][-1][1]
        return Outcome(metrics, {name: history.curves[name] for name in CURVES if name in history.curves})

    def data(self) -> Data:
        origin = task_of(self.case).origin
        return Data(origin.name, origin.line, origin.fingerprint)


def gate(case: TokenMixingCase, inputs: tuple[Tensor, ...], outputs: Any) -> float:
    """The step's loss is a finite scalar that a classifier of so many classes can have. Raises Wrong.

    A guess costs ln(classes); a model that has just begun is near it, one that trains on is below.
    """
    if type(outputs) is not torch.Tensor or outputs.ndim:
        raise Wrong(f"a step returned {type(outputs).__name__}, expected its loss, a scalar tensor")
    value, guess = float(to_float64(outputs, "loss")), math.log(task_of(case).classes)
    if not 0 <= value <= 2 * guess:
        raise Wrong(f"the loss is {value:.4g}; a guess among {task_of(case).classes} classes costs {guess:.3g}")
    return 0.0
