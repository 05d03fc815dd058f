"""FSDP2 that keeps only the inputs of blocks and computes the rest again in the backward.

A sequence then costs a block's input for each block, and one block's activations at a time.

Source: Chen et al. 2016, arXiv:1604.06174; Zhao et al. 2023, arXiv:2304.11277
"""

from archbench.models.largest_batch import LargestBatchCase
from archbench.models.largest_batch._workload import searched
from archbench.track import Contender

CONTENDER: Contender[LargestBatchCase] = Contender(build=searched("fsdp_recompute", cut="ranks"), family="torch")
