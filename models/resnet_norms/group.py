"""GroupNorm: statistics over a group of channels and the pixels of an image.

One of five networks that differ in nothing else.

Source: Wu & He 2018, arXiv:1803.08494
"""

from archbench.models.resnet_norms import ResNetCase, _workload
from archbench.track import Contender

CONTENDER: Contender[ResNetCase] = Contender(build=_workload.factory("group"))
