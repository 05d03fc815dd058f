"""A contender whose ranks do what a test orders in the second update.

``ARCHBENCH_TEST_ORDER`` is ``WHAT:RANK``.
"""

from __future__ import annotations

import os
import time
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from archbench.models.parallel._trainer import Replicas

ORDER, _, RANK = os.environ.get("ARCHBENCH_TEST_ORDER", "").partition(":")


class Wayward(Replicas):
    updates = 0

    def wrapped(self, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model) if self.world.size > 1 else model

    def step(self, batch: Tensor) -> Tensor:
        self.updates += 1
        if self.updates == 2 and str(self.world.rank) == RANK:
            print("about to do as ordered", flush=True)
            if ORDER == "raise":
                raise ValueError("this rank does not like the batch")
            if ORDER == "exit":
                os._exit(0)
            if ORDER == "sleep":
                time.sleep(600)
            if ORDER == "memory":
                self.kept: Any = bytearray(1 << 50)
        return super().step(batch)


if ORDER != "no trainer":
    trainer = Wayward
