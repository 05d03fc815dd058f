"""A contender whose rank 1 stands still in every update, as one does that gets no core, or a slow one."""

from __future__ import annotations

import time

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from archbench.models.parallel._trainer import Replicas

STILL_S = 0.3


class Lame(Replicas):
    def wrapped(self, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model)

    def step(self, batch: Tensor) -> Tensor:
        if self.world.rank == 1:
            time.sleep(STILL_S)
        return super().step(batch)


trainer = Lame
