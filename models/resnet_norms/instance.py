"""InstanceNorm: statistics over the pixels of one channel of an image.

One of five networks that differ in nothing else.

Source: Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022
"""

from archbench.models.resnet_norms import ResNetCase, _workload
from archbench.track import Contender

CONTENDER: Contender[ResNetCase] = Contender(build=_workload.factory("instance"))
