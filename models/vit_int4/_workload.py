"""From a method to its row: float networks by seed, the method's network, what it loses, and its deployed form.

The float network of a seed is trained once on a host and kept in the user's cache, by a name that follows from all that
decides it; every contender starts from the same one, and a run that was cut off goes on.

Letters: N images.
"""

from __future__ import annotations

import copy
import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.cells import Data
from archbench.checks import Wrong
from archbench.models._data.fingerprint import cache_folder
from archbench.models.data import Augment, BadData, Batches, Images, load_images
from archbench.models.train import History, Recipe, Step, fit, seeded
from archbench.models.vit_int4 import CHANNELS, CLASSES, PIXELS, VitCase, _vit
from archbench.models.vit_int4._deployed import Deployed
from archbench.models.vit_int4._layers import calibrate, quantised
from archbench.models.vit_int4._method import Method
from archbench.models.vit_int4._plan import Bits, Plan
from archbench.models.vit_int4._vit import Size, VisionTransformer
from archbench.track import Device, Unavailable
from archbench.training import Curve, Outcome

LR, FURTHER_LR = 2e-3, 5e-4  # at their peaks: from nothing, and from a trained network
EVALUATIONS = 2  # of a run
EVALUATION_BATCH = 500
EXTREMES = 8192  # calibration images where ranges are from minimum to maximum
LARGE = 512  # calibration images at most where they are large
PAIRS = 12  # of updates, for their ratio
WORTH_SHARING = 0.002  # an increase of the error below which a share of it says nothing
DEPLOYED_BOUND = 0.001  # of the share of right answers
AUGMENTS = {"cifar10": Augment(flip=True, padding=4), "mnist": Augment(padding=2), "imagenet-1k": Augment(flip=True)}


def size_of(case: VitCase) -> Size:
    channels, classes = CHANNELS.get(case.data, 3), CLASSES.get(case.data, 10)
    return Size(PIXELS[case.data], case.patch, case.dim, case.depth, case.heads, classes, channels)


def network(case: VitCase, seed: int) -> VisionTransformer:
    with seeded(seed):
        return VisionTransformer(size_of(case))


@lru_cache(maxsize=2)
def sets(data: str, images: int, test_images: int) -> tuple[Images, Images]:
    """Training and test images of a case; a process looks at them once. Raises Unavailable where they are missing."""
    try:
        train, test = load_images(data, "train"), load_images(data, "test")
    except BadData as bad:
        raise Unavailable(str(bad)) from bad
    for found, wanted in ((train, images), (test, test_images)):
        if len(found) < wanted:  # a package carries a small part of a set
            raise Unavailable(f"{found.origin.line}; the case wants {wanted:,}")
        if found.channels != CHANNELS.get(data, 3):
            raise Unavailable(f"{found.origin.line}, of {found.channels} channels; expected {CHANNELS.get(data, 3)}")
    return train.subset(images), test.subset(test_images)


def of(case: VitCase) -> tuple[Images, Images]:
    return sets(case.data, case.images, case.test_images)


def batches(case: VitCase, seed: int, count: int = 0) -> Batches:
    """Augmented training images; ``count`` of them at a time, 0: the case's batch."""
    size = PIXELS[case.data] if case.data == "imagenet-1k" else None
    return Batches(of(case)[0], count or case.batch, seed, augment=AUGMENTS[case.data], size=size)


def calibration_images(case: VitCase, seed: int, count: int) -> Tensor:
    """Augmented training images (N, C, H, W), normalised."""
    most = LARGE if case.data == "imagenet-1k" else case.images
    with batches(case, seed, min(count, most)) as source:
        return source(0)[0]


def make_inputs(case: VitCase, seed: int, device: Device) -> tuple[Tensor]:
    """The batch that is timed: images (N, C, H, W)."""
    with batches(case, seed, case.answers) as source:
        return (source(0)[0].to(device),)


def loss(model: nn.Module, images_NCHW: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(model(images_NCHW).float(), labels_N)


def learning_from(teacher: nn.Module) -> Callable[..., Tensor]:
    """Half the labels, half the answers of the teacher: Hinton et al. 2015, arXiv:1503.02531."""

    def distilling(model: nn.Module, images_NCHW: Tensor, labels_N: Tensor) -> Tensor:
        answers = model(images_NCHW).float()
        with torch.no_grad():
            wanted = teacher(images_NCHW).float().log_softmax(1)
        distance = F.kl_div(answers.log_softmax(1), wanted, log_target=True, reduction="batchmean")
        return (distance + F.cross_entropy(answers, labels_N)) / 2

    return distilling


def recipe(case: VitCase, further: bool) -> Recipe:
    updates = case.further if further else case.updates
    return Recipe(
        steps=updates,
        lr=FURTHER_LR if further else LR,
        optimizer="adamw",
        weight_decay=0.05,
        warmup_steps=updates // 10,
        eval_every=max(1, updates // EVALUATIONS),
        log_every=max(1, updates // 30),
    )


class Evaluation:
    """Shares of wrong answers over all test images."""

    def __init__(self, case: VitCase, device: Device) -> None:
        size = PIXELS[case.data] if case.data == "imagenet-1k" else None
        self.batches = Batches(of(case)[1], min(EVALUATION_BATCH, case.test_images), train=False, size=size)
        self.device = device

    def __call__(self, model: Callable[[Tensor], Tensor]) -> dict[str, float]:
        wrong = torch.zeros((), dtype=torch.int64)
        for step in range(len(self.batches)):
            images, labels = self.batches(step)
            wrong += (model(images.to(self.device)).argmax(dim=1).cpu() != labels).sum()
        return {"test_error": float(wrong) / len(self.batches.images)}


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

    def run(self, seed: int, device: Device) -> Outcome:
        case, method = self.case, self.method
        evaluate = Evaluation(case, device)
        base, _ = float_network(case, seed, device, further=False)
        fp32, float_history = float_network(case, seed, device, further=True)
        images = calibration_images(case, seed, method.calibration).to(device)
        start = base if method.trains else fp32
        began = time.perf_counter()
        with seeded(seed):
            model = method(copy.deepcopy(start), images)
        metrics = {"calibration_s": time.perf_counter() - began}
        curves: dict[str, Curve] = {}
        if method.trains:
            metrics["step_slowdown"] = slowdown(case, model, base, device)
            with batches(case, seed + 1) as source:
                wanted = learning_from(fp32) if case.distil else loss
                history = fit(model, wanted, source, evaluate, recipe(case, True), seed=seed, device=device)
            curves = curves_of(history)
            metrics |= {"step_s": history.step_s, "diverged": float(history.diverged)}
        finished = method.finish(model).eval()
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
        return Outcome(metrics, curves or curves_of(float_history))

    def _rounded(self, fp32: VisionTransformer, seed: int, evaluate: Evaluation, bits: Bits) -> float:
        """The error of rounding alone."""
        images = calibration_images(self.case, seed, EXTREMES).to(evaluate.device)
        rounded = rounding(self.case.plan(bits, "absmax"))(fp32, images)
        return evaluate(rounded)["test_error"]


def rounding(plan: Plan) -> Callable[[VisionTransformer, Tensor], VisionTransformer]:
    """``convert`` of methods that round by a plan and set ranges from the calibration images."""

    def convert(model: VisionTransformer, images: Tensor) -> VisionTransformer:
        rounded = quantised(model, plan).to(images.device).eval()
        calibrate(rounded, images)
        return rounded

    return convert


def curves_of(history: History) -> dict[str, Curve]:
    return {name: history.curves[name] for name in ("loss", "test_error", "grad_norm") if name in history.curves}


def float_network(case: VitCase, seed: int, device: Device, *, further: bool) -> tuple[VisionTransformer, History]:
    """The float network of a seed, and how it was trained; from the cache where this host has made it before."""
    model = network(case, seed) if not further else float_network(case, seed, device, further=False)[0]
    wanted = recipe(case, further)
    with batches(case, seed + int(further)) as source:
        evaluate = Evaluation(case, device)
        kept = cache_folder("vit_int4") / f"{case.data}-{seed}-{identity(case, seed, device, further)}.pt"
        return model, fit(model, loss, source, evaluate, wanted, seed=seed, device=device, checkpoint=kept)


def identity(case: VitCase, seed: int, device: Device, further: bool) -> str:
    """All that decides a float network: its recipes, its data, its code, and who computed it."""
    fixed = replace(case, edges=8, attention=32, nonlinear=32, distil=False, seeds=1, answers=1)
    parts = [asdict(fixed), seed, asdict(recipe(case, False)), asdict(recipe(case, True)) if further else ""]
    parts += [images.origin.fingerprint for images in of(case)]
    parts += [device, torch.__version__, torch.get_num_threads(), Path(_vit.__file__).read_text(encoding="utf-8")]
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


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
