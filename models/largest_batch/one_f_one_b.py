"""PyTorch's Schedule1F1B: a backward as soon as there is one, so few micro-batches are in flight.

A rank keeps the activations of at most as many micro-batches as there are stages behind it, not of all.

Source: Narayanan et al. 2019, PipeDream; Fan et al. 2020, DAPPLE, arXiv:2007.01045
"""

from archbench.models.largest_batch import LargestBatchCase
from archbench.models.largest_batch._workload import searched
from archbench.track import Contender

CONTENDER: Contender[LargestBatchCase] = Contender(build=searched("one_f_one_b", cut="micro_batches"), family="torch")
