"""One process: the whole model and the whole batch under one cap.

With a cap per process it has the least memory of all: what several ranks gain by having several caps shows against it.

Source: Radford et al. 2019 (the model)
"""

from archbench.models.largest_batch import LargestBatchCase
from archbench.models.largest_batch._workload import searched
from archbench.track import Contender

CONTENDER: Contender[LargestBatchCase] = Contender(build=searched("single", cut="ranks"), family="own")
