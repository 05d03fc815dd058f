"""Data parallelism: each rank has the whole model and a part of the batch.

Twice the ranks, twice the sequences; parameters, gradients, optimizer state and gradient buckets are on every rank.

Source: Li et al. 2020, arXiv:2006.15704
"""

from archbench.models.largest_batch import LargestBatchCase
from archbench.models.largest_batch._workload import searched
from archbench.track import Contender

CONTENDER: Contender[LargestBatchCase] = Contender(build=searched("ddp", cut="ranks"), family="torch")
