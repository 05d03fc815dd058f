"""An own GPipe that keeps activations: each rank has some of the blocks and sees all sequences.

All forwards come before the first backward, so the activations of the whole batch are there at once, each rank's of
its own blocks.

Source: Huang et al. 2018, arXiv:1811.06965
"""

from archbench.models.largest_batch import LargestBatchCase
from archbench.models.largest_batch._workload import searched
from archbench.track import Contender

CONTENDER: Contender[LargestBatchCase] = Contender(build=searched("gpipe", cut="micro_batches"), family="own")
