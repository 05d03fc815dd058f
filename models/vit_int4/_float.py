"""The float network of a seed: its data, its recipe, its evaluation, and the cache it stays in.

It is trained once on a host and kept in the user's cache, by a name that follows from all that decides it; every method
starts from the same one, and a run that was cut off goes on.

Letters: N images, C channels, H and W their size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.models._kept import DAMAGED, kept, name_of
from archbench.models.data import Augment, Batches, Images, image_sets
from archbench.models.train import History, Recipe, fit, seeded
from archbench.models.vit_int4 import CHANNELS, CLASSES, PIXELS, VitCase, _vit
from archbench.models.vit_int4._vit import Size, VisionTransformer
from archbench.track import Device

LR, FURTHER_LR = 2e-3, 5e-4  # at their peaks: from nothing, and from a trained network
EVALUATIONS = 2  # of a run
EVALUATION_BATCH = 500
LARGE = 512  # calibration images at most where they are large
AUGMENTS = {"cifar10": Augment(flip=True, padding=4), "mnist": Augment(padding=2), "imagenet-1k": Augment(flip=True)}


def size_of(case: VitCase) -> Size:
    channels, classes = CHANNELS.get(case.data, 3), CLASSES.get(case.data, 10)
    return Size(PIXELS[case.data], case.patch, case.dim, case.depth, case.heads, classes, channels)


def network(case: VitCase, seed: int) -> VisionTransformer:
    with seeded(seed):
        return VisionTransformer(size_of(case))


def of(case: VitCase) -> tuple[Images, Images]:
    return image_sets(case.data, case.images, case.test_images, CHANNELS.get(case.data, 3))


def batches(case: VitCase, seed: int, count: int = 0) -> Batches:
    """Augmented training images; ``count`` of them at a time, 0: the case's batch."""
    size = PIXELS[case.data] if case.data == "imagenet-1k" else None
    return Batches(of(case)[0], count or case.batch, seed, augment=AUGMENTS[case.data], size=size)


def calibration_images(case: VitCase, seed: int, count: int) -> Tensor:
    """Augmented training images (N, C, H, W), normalised."""
    most = LARGE if case.data == "imagenet-1k" else case.images
    with batches(case, seed, min(count, most)) as source:
        return source(0)[0]


def loss(model: nn.Module, images_NCHW: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(model(images_NCHW).float(), labels_N)


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
        divergence_factor=None if further else 10.0,  # a trained network's first loss may be next to nothing
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


def float_network(case: VitCase, seed: int, device: Device, *, further: bool) -> tuple[VisionTransformer, History]:
    """The float network of a seed, and how it was trained; from the cache where this host has made it before."""
    model = network(case, seed) if not further else float_network(case, seed, device, further=False)[0]
    wanted = recipe(case, further)
    name = f"{case.data}-{seed}-{identity(case, seed, device, further)}"
    with batches(case, seed + int(further)) as source, kept("vit_int4", name) as path:
        evaluate, found = Evaluation(case, device), path.exists()
        try:
            return model, fit(model, loss, source, evaluate, wanted, seed=seed, device=device, checkpoint=path)
        except DAMAGED:
            if not found:
                raise
            path.unlink()  # damaged: it is made again
    return float_network(case, seed, device, further=further)


def identity(case: VitCase, seed: int, device: Device, further: bool) -> str:
    """All that decides a float network: its recipes, its data, its code, and who computed it."""
    fixed = replace(case, edges=8, attention=32, nonlinear=32, distil=False, seeds=1, answers=1)
    parts = [asdict(fixed), seed, asdict(recipe(case, False)), asdict(recipe(case, True)) if further else ""]
    parts += [images.origin.fingerprint for images in of(case)]
    return name_of(parts, [_vit], device)
