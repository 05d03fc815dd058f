"""One training step to be timed, and whole runs that are compared with the dense model's of the same seed.

Source: archbench.training (what a training track owes the harness)
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from archbench.cells import Data
from archbench.checks import Wrong, plausible_loss
from archbench.models.switch_lm import SwitchCase
from archbench.models.switch_lm._curves import at, over_time, reaches
from archbench.models.switch_lm._dense_run import dense_run, recipe_of
from archbench.models.switch_lm._memory import profile
from archbench.models.switch_lm._model import Factory, LanguageModel, dense
from archbench.models.switch_lm._text import evaluation, loss, text_of
from archbench.models.train import History, Step, fit
from archbench.track import Device
from archbench.training import Curve, Outcome

PAIRS = 12  # of updates, for the ratio of their times
PASSES = 3  # a training step is worth so many forward passes: the backward pass is two
SAME = 1e-9  # of the largest logit: float64 rounds to 1e-16, and a model is many sums deep
NOT_FINITE = "logits are not finite"  # what a routing says of them
FOUND = ("loss", "load_entropy", "dropped_share")  # curves over steps, beside the quality


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

    @cached_property
    def is_baseline(self) -> bool:
        """Whether the dense model's run is this one: the factory says so, and the parameters are the same."""
        says_so = getattr(self.factory, "is_baseline", False)
        return bool(says_so) and shapes(self.factory(0)) == shapes(dense(self.case)(0))

    def run(self, seed: int, device: Device) -> Outcome:
        try:
            model, history = self._trained(seed, device)
            if history.diverged:
                raise Wrong(f"the run of seed {seed} diverged after {history.diverged_at} steps")
            seen = evaluation(self.case, text_of(self.case).windows, device)(model)
        except ValueError as error:
            if NOT_FINITE not in str(error):
                raise
            raise Wrong(f"the run of seed {seed} diverged: a router's {error}") from error
        sees_nothing_ahead(self.case, model, device)
        baseline = self.is_baseline
        slowdown = 1.0 if baseline else step_slowdown(self.case, model, device)
        rival = history if baseline else dense_run(self.case, seed, device)[1]
        operations = model.operations() / dense(self.case)(seed).operations()
        metrics = {name: seen[name] for name in ("bits_per_byte", "test_error")}
        metrics |= {"train_s": history.train_s, "step_s": history.step_s, "step_slowdown": slowdown}
        metrics |= compared(quality(history), quality(rival), seen["bits_per_byte"], slowdown, operations)
        reached = reaches(quality(history), self.case.target)
        if reached is not None:
            metrics |= {"steps_to_target": reached, "seconds_to_target_s": reached * history.train_s / history.steps}
        if "load_entropy" in seen:
            metrics |= {"load_imbalance": 1 - seen["load_entropy"], "dropped_share": seen["dropped_share"]}
        metrics |= profile(self.case, model, device)
        return Outcome(metrics, self._curves(history, model, slowdown))

    def _trained(self, seed: int, device: Device) -> tuple[LanguageModel, History]:
        if self.is_baseline:
            return dense_run(self.case, seed, device, anew=True)
        case, model = self.case, self.factory(seed)
        watch = evaluation(case, case.curve_rows, device)
        batches = text_of(case).batches(seed)
        return model, fit(model, loss, batches, watch, self.recipe, seed=seed, device=device)

    def _curves(self, history: History, model: LanguageModel, slowdown: float) -> dict[str, Curve]:
        curve = quality(history)
        cost = float(PASSES * model.operations() * self.case.tokens)
        curves: dict[str, Curve] = {"bits_per_byte": curve}
        curves["bits_per_byte_over_flops"] = [(step * cost, bits) for step, bits in curve]
        curves["bits_per_byte_over_time_of_dense"] = over_time(curve, slowdown)
        return curves | {name: history.curves[name] for name in FOUND if name in history.curves}

    def data(self) -> Data:
        origin = text_of(self.case).origin
        return Data(origin.name, origin.line, origin.fingerprint)


def shapes(model: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, parameter.shape) for name, parameter in model.named_parameters()]


@torch.no_grad()
def sees_nothing_ahead(case: SwitchCase, model: nn.Module, device: Device) -> None:
    """The last characters of a window are changed, one or half of them: answers before them stay. Raises Wrong.

    In float64, since an expert that gets other rows may round these ones otherwise, and in bfloat16 that is enough to
    send a token of a later layer elsewhere. In a batch of one: windows of a batch share the experts' room.
    """
    precise = copy.deepcopy(model).double().eval()
    characters = text_of(case).characters
    tokens_1T = text_of(case).test_batches(1)[0][0].to(device)
    before_TV = precise(tokens_1T).logits_BTV[0]
    for kept in {case.length // 2, case.length - 1} - {0}:
        changed_1T = tokens_1T.clone()
        changed_1T[:, kept:] = (changed_1T[:, kept:] + 1) % characters
        after_TV = precise(changed_1T).logits_BTV[0]
        apart = float((after_TV - before_TV)[:kept].abs().max())
        if not apart <= SAME * float(before_TV.abs().max()):
            raise Wrong(
                f"the model looks ahead: the last {case.length - kept} of {case.length} characters were changed, and "
                f"logits before them by up to {apart:.3g}"
            )


def quality(history: History) -> Curve:
    """Bits per byte over steps, without the untrained model's, beside which all others look alike."""
    return [(step, bits) for step, bits in history.curves["bits_per_byte"] if step > 0]


def compared(own: Curve, rival: Curve, final: float, slowdown: float, operations: float) -> dict[str, float]:
    """A run beside the dense model's of its seed. ``slowdown`` and ``operations`` are a step's over the dense model's.

    Both curves are of some windows, ``final`` is of the whole test text: to it is added by how much the own curve was
    above its end when the dense model's time, or operations, were spent. A share is left out where the dense model's
    quality is never reached.
    """
    steps, end = own[-1]
    found = {
        "bits_per_byte_equal_time": final + (at(own, steps / slowdown) - end),
        "bits_per_byte_equal_flops": final + (at(own, steps / operations) - end),
    }
    reached = reaches(own, rival[-1][1])
    if reached is not None:
        found |= {"steps_share": reached / steps, "seconds_share": reached / steps * slowdown}
    return found


def step_slowdown(case: SwitchCase, model: LanguageModel, device: Device) -> float:
    """The time of a trained model's step over the dense model's, the median of pairs in random order."""
    still = replace(recipe_of(case), lr=1e-12)
    steps = [Step(each.train(), loss, still, device) for each in (model, dense(case)(0))]
    batches = text_of(case).batches(0)
    ratios: list[float] = []
    for pair in range(PAIRS + 2):
        batch = [tensor.to(device) for tensor in batches(pair)]
        seconds = {which: timed(steps[which], batch) for which in random.sample((0, 1), 2)}
        if pair >= 2:
            ratios.append(seconds[0] / seconds[1])
    return median(ratios)


def timed(step: Step, batch: Sequence[Tensor]) -> float:
    began = time.perf_counter()
    float(step(*batch))  # waits for the device
    return time.perf_counter() - began


def gate(case: SwitchCase, inputs: tuple[Tensor, ...], outputs: Any) -> float:
    """A step's loss is one that a model can have. Raises Wrong."""
    return plausible_loss(outputs, text_of(case).characters)
