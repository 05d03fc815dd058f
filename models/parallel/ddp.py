"""Data parallelism as PyTorch has it: a replica per rank, gradients averaged in buckets while the backward goes on.

Source: Li et al. 2020, arXiv:2006.15704
"""

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._build import built
from archbench.models.parallel._ways.data_parallel import DataParallel
from archbench.track import Contender

trainer = DataParallel

CONTENDER: Contender[ParallelCase] = Contender(build=built(__name__), family="torch")
