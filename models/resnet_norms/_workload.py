"""Batches, gate, one step and one whole run of a ResNet-18.

Letters: N images, C channels, H and W their size.

Source: He et al. 2015, arXiv:1512.03385; Goyal et al. 2017, arXiv:1706.02677 (learning rate in proportion to the batch)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.cells import Data
from archbench.checks import Wrong, flatten, to_float64
from archbench.models.data import Augment, Batches, Images, Prefetch, image_sets
from archbench.models.resnet_norms import PIXELS, ResNetCase
from archbench.models.resnet_norms._landscape import along_the_gradient
from archbench.models.resnet_norms._model import ResNet18
from archbench.models.train import History, Recipe, Step, fit, seeded
from archbench.track import Device
from archbench.training import Curve, Outcome

LR_OF_256 = 0.4  # peak learning rate at batch 256; in proportion at others
IMAGENET_LR_OF_256 = 0.1  # the standard recipe's
LR_FACTORS = (0.25, 1.0, 4.0, 16.0, 64.0)  # of the stability map
PROBE_IMAGES = 256  # seen by one run of the stability map
PROBE_READINGS = 16  # of its loss
WORSE = 1.5  # times the loss of knowing nothing: a probe that ends above has diverged
EVALUATIONS = 8  # over a run
LOOKS = 5  # of the landscape, over a run; each costs five passes
LENGTHS = (0.5, 1.0, 2.0, 4.0)  # of the step the landscape is looked at along, in learning rates
LOST = 1000.0  # what a look counts as whose way leads to larger numbers, or to none
EVALUATION_BATCH = 256
AUGMENTS = {"cifar10": Augment(flip=True, padding=4), "mnist": Augment(padding=2), "imagenet-1k": Augment(flip=True)}
LOOKED_AT = ("loss_range", "gradient_change")
CHANNELS = {"mnist": 1}  # others have 3
LARGEST_LOSS = 20.0  # of a network that is not trained yet; chance is log(classes)

Factory = Callable[[int], nn.Module]


def factory(norm: str) -> Callable[[ResNetCase], Factory]:
    """A contender's ``build``: case -> (seed -> network)."""

    def build(case: ResNetCase) -> Factory:
        def network(seed: int) -> nn.Module:
            with seeded(seed):
                classes, channels = (1000, 3) if case.stem == "imagenet" else (10, CHANNELS.get(case.data, 3))
                return ResNet18(norm, classes=classes, width=case.width, stem=case.stem, channels=channels)

        return network

    return build


def of(case: ResNetCase) -> tuple[Images, Images]:
    return image_sets(case.data, case.images, case.test_images, CHANNELS.get(case.data, 3))


def batches(case: ResNetCase, seed: int) -> Batches:
    return Batches(of(case)[0], case.batch, seed, augment=AUGMENTS[case.data], size=resized(case))


def evaluation_batches(case: ResNetCase) -> Batches:
    return Batches(of(case)[1], EVALUATION_BATCH, train=False, size=resized(case))


def resized(case: ResNetCase) -> int | None:
    """To which size images are brought; None: they have it."""
    return PIXELS[case.data] if case.stem == "imagenet" else None


def make_inputs(case: ResNetCase, seed: int, device: Device) -> tuple[Tensor, Tensor]:
    """One training batch: images_NCHW, labels_N."""
    with batches(case, seed) as source:
        images, labels = source(0)
    return images.to(device), labels.to(device)


def gate(case: ResNetCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    """A step's loss must be one number of the right size. Raises Wrong. It has no reference: the error is 0."""
    given = list(flatten(outputs).values())
    if len(given) != 1:
        raise Wrong(f"returned {len(given)} values, expected the loss")
    value = to_float64(given[0], "loss")
    if value.shape != () or not 0 <= value <= LARGEST_LOSS:
        raise Wrong(f"the loss is {value}: expected a number from 0 to {LARGEST_LOSS:g}")
    return 0.0


def loss(model: nn.Module, images_NCHW: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(model(images_NCHW).float(), labels_N)


def recipe(case: ResNetCase, lr_factor: float = 1.0) -> Recipe:
    base = IMAGENET_LR_OF_256 if case.stem == "imagenet" else LR_OF_256
    return Recipe(
        steps=case.steps,
        lr=base * case.batch / 256 * lr_factor,
        weight_decay=1e-4 if case.stem == "imagenet" else 5e-4,
        warmup_steps=max(1, case.steps // 20),
        precision="bf16" if case.precision == "bf16" else "fp32",
        channels_last=True,
        eval_every=max(1, case.steps // EVALUATIONS),
        target_error=case.target_error,
        log_every=max(1, case.steps // 60),
    )


class Training:
    """One contender at one case: a step to time, and whole runs."""

    def __init__(self, case: ResNetCase, network: Factory) -> None:
        self.case, self.network = case, network
        of(case)  # missing data is said before anything is timed
        self._step: Step | None = None

    def __call__(self, images_NCHW: Tensor, labels_N: Tensor) -> Tensor:
        """One update with a learning rate that leaves the weights nearly where they are: its cost is the same."""
        if self._step is None:
            self._step = Step(self.network(0), loss, recipe(self.case, 1e-6), images_NCHW.device.type)
        return self._step(images_NCHW, labels_N)

    def data(self) -> Data:
        train, test = (images.origin for images in of(self.case))
        both = hashlib.blake2b(f"{train.fingerprint} {test.fingerprint}".encode(), digest_size=32).hexdigest()
        return Data(train.name, f"{train.line}; tested on {test.line}", both)

    def run(self, seed: int, device: Device) -> Outcome:
        case = self.case
        with ExitStack() as stack:
            source: Any = stack.enter_context(batches(case, seed))
            ahead = stack.enter_context(Prefetch(source)) if case.stem == "imagenet" else source
            watcher = Watcher(case, source, stack.enter_context(evaluation_batches(case)), device)
            history = fit(self.network(seed), loss, ahead, watcher, recipe(case), seed=seed, device=device)
            stability = self._stability(source, seed, device)
        curves: dict[str, Curve] = {name: curve for name, curve in history.curves.items() if name != "lr"}
        return Outcome(metrics(history, case), curves | {"divergence over log10 of the learning rate": stability})

    def _stability(self, source: Batches, seed: int, device: Device) -> Curve:
        """Whether the first steps at a constant learning rate diverge, for each of several."""
        case = self.case
        steps = max(8, min(case.steps, PROBE_IMAGES // case.batch))
        knowing_nothing = math.log(of(case)[0].classes)
        found = []
        for factor in LR_FACTORS:
            probe = replace(
                recipe(case, factor),
                steps=steps,
                lr_floor=1.0,
                warmup_steps=0,
                eval_every=None,
                log_every=max(1, steps // PROBE_READINGS),
            )
            history = fit(self.network(seed), loss, source, _unjudged, probe, seed=seed, device=device)
            # The mean of several: the loss of one batch of two images says little.
            losses = [value for _, value in history.curves["loss"]][-PROBE_READINGS // 2 :]
            worse = fmean(losses) > WORSE * knowing_nothing
            found.append((round(math.log10(probe.lr), 4), float(history.diverged or worse)))
        return found


def _unjudged(model: nn.Module) -> dict[str, float]:
    return {"test_error": 1.0}  # a probe asks for nothing but the loss


class Watcher:
    """Evaluates a network on the test images, and looks at the landscape of the loss now and then."""

    def __init__(self, case: ResNetCase, source: Batches, test: Batches, device: Device) -> None:
        self.source, self.test, self.device = source, test, device
        self.reach = [length * recipe(case).lr for length in LENGTHS]
        self.calls = 0

    def __call__(self, model: nn.Module) -> dict[str, float]:
        found = {"test_error": self._error(model)}
        if self.calls % max(1, EVALUATIONS // (LOOKS - 1)) == 0:
            batch = [tensor.to(self.device) for tensor in self.source(0)]
            look = along_the_gradient(model, partial(self._loss, batch=batch), self.reach)
            # A number in any case: what is no number ends a run, and this step was not one of the run's.
            found |= {name: value if value < LOST else LOST for name, value in zip(LOOKED_AT, look, strict=True)}
        self.calls += 1
        return found

    @staticmethod
    def _loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        return loss(model, *batch)

    def _error(self, model: nn.Module) -> float:
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        for step in range(len(self.test)):
            images, labels = (tensor.to(self.device) for tensor in self.test(step))
            wrong += (model(images.contiguous(memory_format=torch.channels_last)).argmax(dim=1) != labels).sum()
        return float(wrong) / len(self.test.images)


def metrics(history: History, case: ResNetCase) -> dict[str, float]:
    """What a run reports. One that diverged has the error of chance, and nothing on how well it behaved."""
    found = history.scalars()
    kept = {
        "test_error": found.get("test_error", 1 - 1 / of(case)[0].classes),
        "diverged": found["diverged"],
        "input_bound": found["input_bound"],
    }
    if history.seconds_to_target is not None:
        kept |= {"seconds_to_target_s": history.seconds_to_target, "steps_to_target": found["steps_to_target"]}
    if not history.diverged:
        kept |= {name: median(value for _, value in history.curves[name]) for name in LOOKED_AT}
        kept["grad_norm_spread"] = spread([norm for _, norm in history.curves["grad_norm"]])
    return kept


def spread(values: list[float]) -> float:
    """Ratio of the 90th to the 10th percentile, at most LOST."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[(len(ordered) * 9) // 10]
    return high / low if high < low * LOST else LOST
