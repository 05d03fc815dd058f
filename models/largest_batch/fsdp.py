"""Fully sharded data parallelism (FSDP2): a part of the batch and a part of the model's state on each rank.

What sharding frees of parameters, gradients and optimizer state is room for activations.

Source: Zhao et al. 2023, arXiv:2304.11277
"""

from archbench.models.largest_batch import LargestBatchCase
from archbench.models.largest_batch._workload import searched
from archbench.track import Contender

CONTENDER: Contender[LargestBatchCase] = Contender(build=searched("fsdp", cut="ranks"), family="torch")
