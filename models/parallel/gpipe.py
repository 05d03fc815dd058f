"""GPipe of our own: stages over ranks, forward passes of all micro-batches, then their backward passes.

Stages are cut by measured cost. Receives are posted before they are needed, and sends go on while the next micro-batch
is computed. Activations are kept from forward to backward, as PyTorch's schedule keeps them; ``gpipe_recompute`` makes
them again.

Source: Huang et al. 2018, arXiv:1811.06965
"""

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._trainer import World
from archbench.models.parallel._ways.pipeline import OwnPipeline, pipelined
from archbench.models.parallel._ways.schedule import gpipe
from archbench.track import Contender


def trainer(world: World) -> OwnPipeline:
    return OwnPipeline(world, gpipe(world.case.micro_batches))


CONTENDER: Contender[ParallelCase] = Contender(build=pipelined(__name__))
