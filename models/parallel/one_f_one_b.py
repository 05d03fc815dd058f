"""1F1B as PyTorch has it: after a warm-up every stage alternates one forward and one backward pass.

The bubble is that of GPipe, but stage k of K holds the activations of at most K - k micro-batches in place of M.

Source: https://docs.pytorch.org/docs/stable/distributed.pipelining.html; Narayanan et al. 2021, arXiv:2104.04473
(PipeDream-Flush)
"""

from torch.distributed.pipelining import Schedule1F1B

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._build import Training
from archbench.models.parallel._trainer import World
from archbench.models.parallel._ways.pipeline import pipelined
from archbench.models.parallel._ways.pipeline_torch import TorchPipeline
from archbench.track import Contender, Unavailable


def trainer(world: World) -> TorchPipeline:
    return TorchPipeline(world, Schedule1F1B)


def build(case: ParallelCase) -> Training:
    if case.micro_batches < case.world:
        raise Unavailable(f"needs a micro-batch for each stage: {case.micro_batches} for {case.world}")
    return pipelined(__name__)(case)


CONTENDER: Contender[ParallelCase] = Contender(build=build, family="torch")
