"""A rank at work: its place among the others, its trainer, and its line in the driver's notes."""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from archbench.models.parallel._launch.ranks import NOTE
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

    def update(self, batch: Tensor) -> Tensor:
        """One update from its begin to its end, on a GPU too."""
        self.begin_update()
        loss = self.trainer.step(batch)
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
        return loss

    def together(self) -> None:
        """Go on when every rank has come here."""
        distributed.barrier(group=self.control)

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value, on rank 0; elsewhere empty."""
        everyone: list[Any] | None = [None] * self.world.size if self.world.rank == 0 else None
        distributed.gather_object(value, everyone, dst=0, group=self.control)
        return everyone or []

    def agreed(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        said = [value]
        distributed.broadcast_object_list(said, src=0, group=self.control)
        return said[0]
