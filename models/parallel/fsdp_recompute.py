"""FSDP2 that keeps only what enters a block and computes the rest again: memory for a third more operations.

Of a block's activations nothing is kept but its input; the backward runs the block's forward once more, on the
parameters it has gathered anyway, so the wire carries what it carries without.

Source: Chen et al. 2016, arXiv:1604.06174
"""

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._build import built
from archbench.models.parallel._ways.fully_sharded import FullySharded
from archbench.track import Contender


class Recomputing(FullySharded):
    def wrapped(self, model: nn.Module) -> nn.Module:
        blocks: list[Any] = list(model.children())[1:-1]
        for block in blocks:  # nothing is drawn in one, so no state of a generator need be kept
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        return super().wrapped(model)


trainer = Recomputing

CONTENDER: Contender[ParallelCase] = Contender(build=built(__name__), family="torch")
