"""The task: the next character of a text, told in bits for each of its UTF-8 bytes.

Every contender sees the same windows: a batch is a function of seed and step. The loss that is trained on is the mean
cross-entropy in nats and, for each Switch layer, ``BALANCE_WEIGHT`` times the auxiliary loss of its routing.

Letters: B batch, T length, V characters, N = B T tokens, E experts, L Switch layers.

Source: Fedus et al. 2021, arXiv:2101.03961, equations 4 to 6
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.models import data
from archbench.models._train_step import AUTOCAST
from archbench.models.switch_lm import SwitchCase
from archbench.track import Device, Unavailable

BALANCE_WEIGHT = 1e-2  # of the auxiliary loss of a Switch layer, in which the z-loss has a tenth of balance's weight

Batch = tuple[Tensor, Tensor]


class NextCharacters:
    """One text, cut into windows: tokens (B, T) and the tokens that follow them."""

    def __init__(self, case: SwitchCase) -> None:
        self.case = case
        self.train, self.test = data.load_text(case.data, "train"), data.load_text(case.data, "test")
        data.Windows(self.train, case.batch, case.length)  # a text too short for the case is found out here
        self.windows = (len(self.test) - 1) // case.length  # of the test text; less than one is left over
        self._test = data.Windows(self.test, max(1, self.windows), case.length, train=False)(0)
        self.origin = self.train.origin
        self.characters = self.train.vocabulary
        self.bytes_V = torch.tensor([len(character.encode()) for character in self.train.characters])

    def batches(self, seed: int) -> Callable[[int], Batch]:
        return data.Windows(self.train, self.case.batch, self.case.length, seed)

    def test_batches(self, rows: int) -> list[Batch]:
        """So many windows, or all, spread evenly over the test text: batches of the training's size and a short one."""
        rows = min(rows, self.windows)
        chosen = torch.arange(rows) * self.windows // rows
        return [(self._test[0][part], self._test[1][part]) for part in chosen.split(self.case.batch)]


@cache
def text_of(case: SwitchCase) -> NextCharacters:
    """The task with its text, loaded once in a process. Raises Unavailable where the text is nowhere or of no use."""
    try:
        return NextCharacters(case)
    except data.BadData as bad:
        raise Unavailable(str(bad)) from bad


def make_inputs(case: SwitchCase, seed: int, device: Device) -> tuple[Tensor, ...]:
    """One training batch: tokens_BT and the tokens that follow."""
    return tuple(tensor.to(device) for tensor in text_of(case).batches(seed)(0))


def loss(model: nn.Module, tokens_BT: Tensor, next_BT: Tensor) -> Tensor:
    """Mean cross-entropy, and the auxiliary losses of all Switch layers."""
    logits_BTV, routed = model(tokens_BT)
    nats = F.cross_entropy(logits_BTV.flatten(0, 1).float(), next_BT.flatten())
    return nats + BALANCE_WEIGHT * sum(found.routing.loss.float() for found in routed) if routed else nats


class Evaluation:
    """``test_error``, ``bits_per_byte``, and of a model with Switch layers ``load_entropy`` and ``dropped_share``."""

    def __init__(self, task: NextCharacters, rows: int, device: Device, dtype: torch.dtype | None) -> None:
        self.batches = [(tokens.to(device), wanted.to(device)) for tokens, wanted in task.test_batches(rows)]
        self.bytes_V = task.bytes_V.to(device)
        self.device, self.dtype = device, dtype

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        wrong, nats, tokens, size = 0, 0.0, 0, 0
        routed: list[list[Any]] = []
        for tokens_BT, next_BT in self.batches:
            with torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype is not None):
                logits_BTV, found = model(tokens_BT)
            logits_NV, next_N = logits_BTV.flatten(0, 1).float(), next_BT.flatten()
            wrong += int((logits_NV.argmax(-1) != next_N).sum())
            nats += float(F.cross_entropy(logits_NV, next_N, reduction="sum"))
            tokens += next_N.numel()
            size += int(self.bytes_V[next_N].sum())
            routed.append(found)
        seen = {"test_error": wrong / tokens, "bits_per_byte": nats / math.log(2) / size}
        return seen | _loads(routed, tokens) if routed[0] else seen


def evaluation(case: SwitchCase, rows: int, device: Device) -> Evaluation:
    """Of so many windows of the test text at most, computed as the training is."""
    return Evaluation(text_of(case), rows, device, AUTOCAST.get(case.precision))


def _loads(routed: Sequence[Sequence[Any]], tokens: int) -> dict[str, float]:
    """Entropy of the experts' load as a share of the largest there can be, and the share of tokens without an expert.

    Both are means over the Switch layers; the load is what was asked for, whether there was room or not, and found as
    the routing finds it: of equal logits argmax may take another.
    """
    entropies, dropped = [], 0
    for layer in zip(*routed, strict=True):
        experts = layer[0].logits_NE.shape[-1]
        load_E = (
            sum(torch.bincount(found.logits_NE.topk(1).indices.flatten(), minlength=experts) for found in layer)
            / tokens
        )
        entropies.append(float(torch.special.entr(load_E).sum()) / math.log(experts))
        dropped += sum(int(found.routing.dropped) for found in layer)
    return {
        "load_entropy": sum(entropies) / len(entropies),
        "dropped_share": dropped / tokens / len(entropies),
    }
