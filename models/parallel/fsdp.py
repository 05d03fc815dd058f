"""Fully sharded data parallelism (FSDP2): parameters, gradients and optimizer state are cut over the ranks.

Parameters are gathered before their blocks are used and freed afterwards, in the forward and again in the backward;
gradients are averaged and scattered. Optimizer state never exists in whole.

Source: Zhao et al. 2023, arXiv:2304.11277; Rajbhandari et al. 2019, arXiv:1910.02054 (ZeRO)
"""

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._build import built
from archbench.models.parallel._ways.fully_sharded import FullySharded
from archbench.track import Contender

trainer = FullySharded

CONTENDER: Contender[ParallelCase] = Contender(build=built(__name__), family="torch")
