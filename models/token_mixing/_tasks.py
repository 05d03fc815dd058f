"""Batches, loss and test of the two tasks: masked characters of a text, classes of images.

Of a window of T characters 15 % (at least one) are replaced by the mask, drawn anew in every step; loss and error are
those of the masked ones. All of them become the mask: BERT's random and unchanged tenths serve fine-tuning, which there
is none of here. Batches are a function of (seed, step), the same for every contender.

Letters: B batch, T length, M masked positions of a window, C channels, I height and width of an image, V classes.

Source: Devlin et al. 2018, arXiv:1810.04805
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archbench.models import data
from archbench.models.token_mixing import TokenMixingCase
from archbench.track import Device, Unavailable

MASKED_SHARE = 0.15
TEST_SEED = 1 << 40  # no training batch has it
TEST_BATCH = 100


class MaskedText:
    """The masked-character task on one text."""

    channels = 0

    def __init__(self, case: TokenMixingCase) -> None:
        self.case = case
        self.train, self.test = data.load(case.data, "train"), data.load(case.data, "test")
        self.origin = self.train.origin
        self.classes: int = self.train.vocabulary  # type: ignore[union-attr]
        self.masked = max(1, round(MASKED_SHARE * case.length))

    def batches(self, seed: int) -> Any:
        windows = data.Windows(self.train, self.case.batch, self.case.length, seed)  # type: ignore[arg-type]
        return lambda step: self._hidden(windows(step)[0], hash((seed, step)))

    def test_batches(self) -> list[tuple[Tensor, ...]]:
        rows = min(self.case.test_rows, (len(self.test) - 1) // self.case.length)
        windows = data.Windows(self.test, min(TEST_BATCH, rows), self.case.length, train=False)  # type: ignore[arg-type]
        steps = range(max(1, rows // TEST_BATCH))
        return [self._hidden(windows(step)[0], hash((TEST_SEED, step))) for step in steps]

    def _hidden(self, tokens_BT: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """tokens with masks, positions_BM of the masks, targets_BM that were there."""
        generator = torch.Generator().manual_seed(seed)
        positions_BM = torch.rand(tokens_BT.shape, generator=generator).topk(self.masked, sorted=False).indices
        return tokens_BT.scatter(1, positions_BM, self.classes), positions_BM, tokens_BT.gather(1, positions_BM)


class ImageClasses:
    """The classification task on one set of images."""

    def __init__(self, case: TokenMixingCase) -> None:
        self.case = case
        self.train, self.test = data.load(case.data, "train"), data.load(case.data, "test")
        self.origin = self.train.origin
        self.classes = self.train.classes  # type: ignore[union-attr]
        pixels_NCII = self.train.tensors()[0]  # type: ignore[union-attr]
        self.channels, height, width = pixels_NCII.shape[1:]
        patches = (height // case.patch) * (width // case.patch)
        if height % case.patch or width % case.patch or patches != case.length:
            raise ValueError(f"{case.slug}: images of {width}x{height} have {patches} patches, not {case.length}")

    def batches(self, seed: int) -> Any:
        return data.Batches(self.train, self.case.batch, seed)  # type: ignore[arg-type]

    def test_batches(self) -> list[tuple[Tensor, ...]]:
        rows = min(self.case.test_rows, len(self.test))
        batches = data.Batches(self.test, min(TEST_BATCH, rows), train=False)  # type: ignore[arg-type]
        return [batches(step) for step in range(max(1, rows // TEST_BATCH))]


@cache
def task_of(case: TokenMixingCase) -> MaskedText | ImageClasses:
    """The task with its data, loaded once in a process. Raises Unavailable where the data is nowhere."""
    try:
        return MaskedText(case) if case.text else ImageClasses(case)
    except data.DataMissing as missing:
        raise Unavailable(str(missing)) from missing


def make_inputs(case: TokenMixingCase, seed: int, device: Device) -> tuple[Tensor, ...]:
    """One training batch: tokens_BT, positions_BM, targets_BM, or images_BCII, labels_B."""
    return tuple(tensor.to(device) for tensor in task_of(case).batches(seed)(0))


def loss(model: nn.Module, *batch: Tensor) -> Tensor:
    """Mean cross-entropy over the targets, the last tensor of a batch."""
    *asked, targets = batch
    return F.cross_entropy(model(*asked).flatten(0, -2), targets.flatten())


@torch.no_grad()
def evaluate(model: nn.Module, batches: list[tuple[Tensor, ...]]) -> dict[str, float]:
    """Share of targets that are not the likeliest answer, and the mean cross-entropy."""
    device = next(model.parameters()).device
    wrong, nats, count = 0, 0.0, 0
    for batch in batches:
        *asked, targets = (tensor.to(device) for tensor in batch)
        logits_NV = model(*asked).flatten(0, -2)
        wrong += int((logits_NV.argmax(-1) != targets.flatten()).sum())
        nats += float(F.cross_entropy(logits_NV, targets.flatten(), reduction="sum"))
        count += targets.numel()
    return {"test_error": wrong / count, "test_loss": nats / count}
