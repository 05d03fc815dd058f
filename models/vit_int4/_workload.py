"""From a method to its row: its network, what that loses against the float one, and its deployed form.

Letters: N images.
"""

from __future__ import annotations

import copy
import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.cells import Data
from archbench.checks import Wrong
from archbench.models.train import History, Step, fit, seeded
from archbench.models.vit_int4 import VitCase
from archbench.models.vit_int4._deployed import Deployed
from archbench.models.vit_int4._float import (
    LARGE,
    Evaluation,
    batches,
    calibration_images,
    float_network,
    loss,
    network,
    of,
    recipe,
)
from archbench.models.vit_int4._layers import rounding
from archbench.models.vit_int4._method import EXTREMES, Method
from archbench.models.vit_int4._plan import Bits
from archbench.models.vit_int4._vit import VisionTransformer
from archbench.track import Device
from archbench.training import Curve, Outcome

PAIRS = 12  # of updates, for their ratio
WORTH_SHARING = 0.002  # an increase of the error below which a share of it says nothing
DEPLOYED_BOUND = 0.001  # of the share of right answers


def make_inputs(case: VitCase, seed: int, device: Device) -> tuple[Tensor]:
    """The batch that is timed: images (N, C, H, W)."""
    with batches(case, seed, case.answers) as source:
        return (source(0)[0].to(device),)


def learning_from(teacher: nn.Module) -> Callable[..., Tensor]:
    """Half the labels, half the answers of the teacher: Hinton et al. 2015, arXiv:1503.02531."""

    def distilling(model: nn.Module, images_NCHW: Tensor, labels_N: Tensor) -> Tensor:
        answers = model(images_NCHW).float()
        with torch.no_grad():
            wanted = teacher(images_NCHW).float().log_softmax(1)
        distance = F.kl_div(answers.log_softmax(1), wanted, log_target=True, reduction="batchmean")
        return (distance + F.cross_entropy(answers, labels_N)) / 2

    return distilling


@dataclass(frozen=True)
class Made:
    """What a method has made of a seed's float network."""

    finished: nn.Module
    fp32: VisionTransformer  # with the further updates
    metrics: dict[str, float]
    curves: dict[str, Curve]


class Training:
    """A method at a case: called, the deployed network classifies; ``run`` finds out what the method loses."""

    def __init__(self, case: VitCase, method: Method) -> None:
        self.case, self.method = case, method
        of(case)  # missing data is said before anything is timed
        model = network(case, 0).eval()
        images = calibration_images(case, 0, LARGE)
        with seeded(0):
            self.finished = method.finish(method(model, images)).eval()
        self.deployed = Deployed(self.finished, method.runtime, case.threads)

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """The logits (N, classes) of the deployed network."""
        return self.deployed(images_NCHW)

    def judge(self, inputs: tuple[Any, ...], outputs: Any) -> float:
        """The relative error of the deployed network's logits, against those of the network it was made of."""
        return self.deployed.judge(self.finished, inputs[0], outputs)

    def data(self) -> Data:
        train, test = (images.origin for images in of(self.case))
        both = hashlib.blake2b(f"{train.fingerprint} {test.fingerprint}".encode(), digest_size=32).hexdigest()
        return Data(train.name, f"{train.line}; tested on {test.line}", both)

    def made(self, seed: int, device: Device) -> Made:
        """The method's network of a seed, trained where it trains."""
        case, method = self.case, self.method
        base, _ = float_network(case, seed, device, further=False)
        fp32, float_history = float_network(case, seed, device, further=True)
        if float_history.diverged:
            raise Wrong(f"the float network of seed {seed} diverged: there is nothing to compare with")
        images = calibration_images(case, seed, method.calibration).to(device)
        given = copy.deepcopy(base if method.trains else fp32)
        began = time.perf_counter()
        with seeded(seed):
            model = method(given, images)
        metrics = {"calibration_s": time.perf_counter() - began}
        curves = curves_of(float_history) if model is given else {}  # rounding alone has no course
        if method.trains:
            metrics["step_slowdown"] = slowdown(case, model, base, device)
            wanted = learning_from(fp32) if case.distil else loss
            with batches(case, seed + 1) as source:
                evaluate = Evaluation(case, device)
                history = fit(model, wanted, source, evaluate, recipe(case, True), seed=seed, device=device)
            curves = curves_of(history)
            metrics |= {"step_s": history.step_s, "diverged": float(history.diverged)}
        return Made(method.finish(model).eval(), fp32, metrics, curves)

    def run(self, seed: int, device: Device) -> Outcome:
        case, method = self.case, self.method
        evaluate = Evaluation(case, device)
        made = self.made(seed, device)
        finished, fp32, metrics = made.finished, made.fp32, dict(made.metrics)
        with torch.no_grad():
            error = evaluate(finished)["test_error"]
            float_error = evaluate(fp32)["test_error"]
            deployed = Deployed(finished, method.runtime, case.threads)
            difference = abs(evaluate(deployed)["test_error"] - error)
        if difference > DEPLOYED_BOUND:
            raise Wrong(f"deployed, the network errs on {difference:.2%} more or fewer of the test images")
        metrics |= {
            "test_error": error,
            "error_increase": error - float_error,
            "deployed_difference": difference,
        }
        if deployed.file_bytes:
            metrics["file_bytes"] = float(deployed.file_bytes)
        if method.bits is not None:
            rounded = self._rounded(fp32, seed, evaluate, method.bits)
            if rounded - float_error > WORTH_SHARING:
                metrics["loss_left_share"] = (error - float_error) / (rounded - float_error)
        return Outcome(metrics, made.curves)

    @torch.no_grad()
    def _rounded(self, fp32: VisionTransformer, seed: int, evaluate: Evaluation, bits: Bits) -> float:
        """The error of rounding alone."""
        images = calibration_images(self.case, seed, EXTREMES).to(evaluate.device)
        rounded = rounding(self.case.plan(bits, "absmax"))(fp32, images)
        return evaluate(rounded)["test_error"]


def curves_of(history: History) -> dict[str, Curve]:
    return {name: history.curves[name] for name in ("loss", "test_error", "grad_norm") if name in history.curves}


def slowdown(case: VitCase, model: nn.Module, base: nn.Module, device: Device) -> float:
    """The time of a training update over that of the float network, the median of pairs in random order."""
    still = replace(recipe(case, True), lr=1e-12)
    steps = [Step(copy.deepcopy(each).train(), loss, still, device) for each in (model, base)]
    ratios = []
    with batches(case, 0) as source:
        batch = source(0)
        for pair in range(PAIRS + 2):
            seconds = {}
            for which in random.sample((0, 1), 2):
                began = time.perf_counter()
                float(steps[which](*batch))  # waits for the device
                seconds[which] = time.perf_counter() - began
            if pair >= 2:
                ratios.append(seconds[0] / seconds[1])
    return median(ratios)
