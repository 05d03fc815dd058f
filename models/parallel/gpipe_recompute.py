"""GPipe of our own with re-materialisation, as in the paper: a stage keeps its inputs and makes the rest again.

Activations of one micro-batch are alive at a time in place of M. The price is a second forward pass of all
micro-batches but the last; it is made while the gradient is on its way.

Source: Huang et al. 2018, arXiv:1811.06965, section 2.3; Chen et al. 2016, arXiv:1604.06174 (sublinear memory)
"""

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._trainer import World
from archbench.models.parallel._ways.pipeline import OwnPipeline, pipelined
from archbench.models.parallel._ways.schedule import gpipe
from archbench.track import Contender


def trainer(world: World) -> OwnPipeline:
    return OwnPipeline(world, gpipe(world.case.micro_batches, recompute=True))


CONTENDER: Contender[ParallelCase] = Contender(build=pipelined(__name__))
