"""Data parallelism as PyTorch has it: a replica per rank, gradients averaged in buckets while the backward goes on.

Source: Li et al. 2020, arXiv:2006.15704
"""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._build import built
from archbench.models.parallel._trainer import Replicas
from archbench.models.parallel._wire import FLOAT_BYTES, RING
from archbench.track import Contender


class DataParallel(Replicas):
    def wrapped(self, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model)

    def wire_formula(self) -> float:
        return RING["allreduce"](self.world.size) * FLOAT_BYTES * self.weights_formula()


trainer = DataParallel

CONTENDER: Contender[ParallelCase] = Contender(build=built(__name__), family="torch")
