"""FSDP2 in mixed precision: parameters travel and compute as bfloat16, gradients are averaged in float32.

Each rank keeps its shard of the weights and the optimizer's state in float32, casts it before it is gathered, and
computes forward and backward in bfloat16: half the bytes of activations and of gathered parameters.

Source: Micikevicius et al. 2018, arXiv:1710.03740; https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._build import built
from archbench.models.parallel._gate import HALF
from archbench.models.parallel._ways.fully_sharded import FullySharded, sharded
from archbench.track import Contender

PRECISION = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


class HalfPrecision(FullySharded):
    gathered_bytes = 2

    def wrapped(self, model: nn.Module) -> nn.Module:
        return sharded(model, self.world.mesh("shard"), PRECISION)


trainer = HalfPrecision

CONTENDER: Contender[ParallelCase] = Contender(
    build=built(__name__), family="torch", differs="forward and backward compute in bfloat16", gate=HALF
)
