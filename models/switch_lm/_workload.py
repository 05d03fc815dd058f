"""One training step to be timed, and whole runs that are compared with the dense model's of the same seed.

Source: archbench.training (what a training track owes the harness)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from archbench.cells import Data
from archbench.checks import Wrong, to_float64
from archbench.models._train_step import AUTOCAST
from archbench.models.switch_lm import SwitchCase
from archbench.models.switch_lm._model import Factory
from archbench.models.switch_lm._text import Evaluation, loss, text_of
from archbench.models.train import Recipe, Step, fit
from archbench.track import Device
from archbench.training import Outcome

EVALUATIONS = 20  # in a run, besides the one before the first step


def recipe_of(case: SwitchCase) -> Recipe:
    return Recipe(
        steps=case.steps,
        lr=case.lr,
        optimizer="adamw",
        betas=(0.9, 0.98),
        weight_decay=0.01,
        warmup_steps=case.steps // 10,
        clip_norm=1.0,
        precision=case.precision,  # type: ignore[arg-type]
        eval_every=max(1, case.steps // EVALUATIONS),
    )


class Training:
    """A contender at a case: called, it makes one step; ``run`` makes all of them."""

    def __init__(self, case: SwitchCase, factory: Factory) -> None:
        self.case = case
        self.factory = factory
        self.recipe = recipe_of(case)
        self.step: Step | None = None

    def __call__(self, *batch: Tensor) -> Tensor:
        if self.step is None or self.step.device.type != batch[0].device.type:
            self.step = Step(self.factory(0), loss, self.recipe, batch[0].device.type)
        return self.step(*batch)

    def run(self, seed: int, device: Device) -> Outcome:
        case, task = self.case, text_of(self.case)
        model = self.factory(seed)
        watch = Evaluation(task, case.curve_rows, device, AUTOCAST.get(case.precision))
        history = fit(model, loss, task.batches(seed), watch, self.recipe, seed=seed, device=device)
        whole = Evaluation(task, len(task.test), device, AUTOCAST.get(case.precision))(model)
        return Outcome(history.scalars() | whole, history.curves)

    def data(self) -> Data:
        origin = text_of(self.case).origin
        return Data(origin.name, origin.line, origin.fingerprint)


def gate(case: SwitchCase, inputs: tuple[Tensor, ...], outputs: Any) -> float:
    """The step's loss is a finite scalar that a model of so many characters can have. Raises Wrong.

    A guess costs ln(characters); a model that has just begun is near it, one that trains on is below, and what the
    routers' losses add is little.
    """
    if type(outputs) is not torch.Tensor or outputs.ndim:
        raise Wrong(f"a step returned {type(outputs).__name__}, expected its loss, a scalar tensor")
    value, guess = float(to_float64(outputs, "loss")), math.log(text_of(case).characters)
    if not 0 <= value <= 2 * guess:
        raise Wrong(f"the loss is {value:.4g}; a guess among {text_of(case).characters} characters costs {guess:.3g}")
    return 0.0
