"""GPipe with re-materialisation: only the inputs of stages are kept, the forward is done again.

Activations of one micro-batch at a time, and an input of the stage for each of the others.

Source: Huang et al. 2018, arXiv:1811.06965
"""

from archbench.models.largest_batch import LargestBatchCase
from archbench.models.largest_batch._workload import searched
from archbench.track import Contender

CONTENDER: Contender[LargestBatchCase] = Contender(build=searched("gpipe_recompute", cut="micro_batches"), family="own")
