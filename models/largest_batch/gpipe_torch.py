"""PyTorch's ScheduleGPipe: all forwards, then all backwards, activations kept.

The library's pipeline with the same stages as the own one: what its buffers and graphs add shows against it.

Source: Huang et al. 2018, arXiv:1811.06965
"""

from archbench.models.largest_batch import LargestBatchCase
from archbench.models.largest_batch._workload import searched
from archbench.track import Contender

CONTENDER: Contender[LargestBatchCase] = Contender(build=searched("gpipe_torch", cut="micro_batches"), family="torch")
