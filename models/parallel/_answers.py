"""What a rank can be asked: a question is a function that every rank runs at once, and rank 0's answer counts.

``train`` is the track's call. The others look at what it cannot tell while it is timed (``_instruments.py``).

Letters: S steps, B sequences of the global batch, L tokens, P parameters.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from archbench.models.parallel._ranks import NOTE
from archbench.models.parallel._trainer import Trainer, World


@dataclass
class Rank:
    """A rank at work: its place, its trainer, a group for talk beside the training, its line in the driver's notes."""

    world: World
    trainer: Trainer
    control: Any  # a gloo group
    notes: mmap.mmap
    calls: int = 0
    updates: int = 0

    def begin_call(self) -> None:
        self.calls, self.updates = self.calls + 1, 0

    def begin_update(self) -> None:
        """The driver reads this where nobody answers."""
        self.updates += 1
        NOTE.pack_into(self.notes, self.world.rank * NOTE.size, self.calls, self.updates, time.monotonic())

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value, on rank 0; elsewhere empty."""
        everyone: list[Any] | None = [None] * self.world.size if self.world.rank == 0 else None
        distributed.gather_object(value, everyone, dst=0, group=self.control)
        return everyone or []


def train(rank: Rank, tokens: Any) -> dict[str, Any]:
    """Losses (S,) and digest (P, 2) of an int64 array (S, B, L + 1), from the initial weights on."""
    batches = torch.from_numpy(tokens).to(rank.world.device)
    rank.trainer.reset()
    losses = []
    for batch in batches:
        rank.begin_update()
        losses.append(rank.trainer.step(batch))
    return {"losses": torch.stack(losses).float().cpu().numpy(), "digest": _digest(rank)}


def _digest(rank: Rank) -> Any:
    """Sum and sum of squares of each parameter of the whole model, by name."""
    own = []
    for shard in rank.trainer.shards():
        values = shard.values.double()
        own.append((shard.name, float(values.sum()) / shard.copies, float(values.square().sum()) / shard.copies))
    sums: dict[str, list[float]] = {}
    for name, total, squares in (entry for entries in rank.gathered(own) for entry in entries):
        found = sums.setdefault(name, [0.0, 0.0])
        found[0] += total
        found[1] += squares
    return torch.tensor([sums[name] for name in sorted(sums, key=order)], dtype=torch.float64).numpy()


def order(name: str) -> tuple[int, str]:
    """Parts of the model in order: "10.up.bias" after "2.up.bias"."""
    part, _, rest = name.partition(".")
    return int(part), rest


QUESTIONS: dict[str, Callable[..., Any]] = {"train": train}
