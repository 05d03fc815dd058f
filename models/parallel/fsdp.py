"""Fully sharded data parallelism (FSDP2): parameters, gradients and optimizer state are cut over the ranks.

A block's parameters are gathered before it is used and freed afterwards, in the forward and again in the backward;
gradients are averaged and scattered. Optimizer state never exists in whole.

Source: Zhao et al. 2023, arXiv:2304.11277; Rajbhandari et al. 2019, arXiv:1910.02054 (ZeRO)
"""

from torch import nn
from torch.distributed.fsdp import fully_shard

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._build import built
from archbench.models.parallel._trainer import Replicas
from archbench.models.parallel._wire import FLOAT_BYTES, RING
from archbench.track import Contender


class FullySharded(Replicas):
    def wrapped(self, model: nn.Module) -> nn.Module:
        mesh = self.world.mesh("shard")
        for part in model.children():
            fully_shard(part, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def weights_formula(self) -> float:
        return super().weights_formula() / self.world.size

    def wire_formula(self) -> float:
        """Parameters are gathered twice, gradients scattered once."""
        return 3 * RING["allgather"](self.world.size) * FLOAT_BYTES * super().weights_formula()


trainer = FullySharded

CONTENDER: Contender[ParallelCase] = Contender(build=built(__name__), family="torch")
