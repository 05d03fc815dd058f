"""GPipe as PyTorch has it: ScheduleGPipe over our stages.

The same cut into stages as ``gpipe``; activations are kept from forward to backward.

Source: https://docs.pytorch.org/docs/stable/distributed.pipelining.html; Huang et al. 2018, arXiv:1811.06965
"""

from torch.distributed.pipelining import ScheduleGPipe

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._trainer import World
from archbench.models.parallel._ways.pipeline import pipelined
from archbench.models.parallel._ways.pipeline_torch import TorchPipeline
from archbench.track import Contender


def trainer(world: World) -> TorchPipeline:
    return TorchPipeline(world, ScheduleGPipe)


CONTENDER: Contender[ParallelCase] = Contender(build=pipelined(__name__), family="torch")
