"""BatchNorm: statistics over the batch and the image; running ones in evaluation.

One of five networks that differ in nothing else.

Source: Ioffe & Szegedy 2015, arXiv:1502.03167
"""

from archbench.models.resnet_norms import ResNetCase, _workload
from archbench.track import Contender

CONTENDER: Contender[ResNetCase] = Contender(build=_workload.factory("batch"))
