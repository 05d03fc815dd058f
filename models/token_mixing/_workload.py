"""One training step to be timed, and whole runs for the quality.

Source: archbench.training (what a training track owes the harness)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from archbench.cells import Data
from archbench.checks import plausible_loss
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
    """A step's loss is one that a model can have. Raises Wrong."""
    return plausible_loss(outputs, task_of(case).classes)
