"""Tensor parallelism: each rank has a part of every block's matrices and sees all sequences.

Activations inside attention and feed-forward are divided, those between blocks are not.

Source: Shoeybi et al. 2019, arXiv:1909.08053
"""

from archbench.models.largest_batch import LargestBatchCase
from archbench.models.largest_batch._workload import searched
from archbench.track import Contender

CONTENDER: Contender[LargestBatchCase] = Contender(build=searched("tensor_parallel", cut="nothing"), family="torch")
