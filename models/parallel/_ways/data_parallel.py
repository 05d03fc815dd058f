"""A replica of the model on every rank, whose gradients are averaged in buckets: what the kinds of DDP share.

Gradients are views into the buckets, so what arrives need not be copied out of them.

Source: Li et al. 2020, arXiv:2006.15704
"""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from archbench.models.parallel._measures.wire import FLOAT_BYTES, RING
from archbench.models.parallel._trainer import Replicas


class DataParallel(Replicas):
    """PyTorch's DistributedDataParallel."""

    sent_bytes = FLOAT_BYTES  # of a gradient's number

    def wrapped(self, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def wire_formula(self) -> float:
        return RING["allreduce"](self.world.size) * self.sent_bytes * self.weights_formula()
