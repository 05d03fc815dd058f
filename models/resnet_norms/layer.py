"""LayerNorm: statistics over all channels and pixels of an image.

One of five networks that differ in nothing else.

Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450
"""

from archbench.models.resnet_norms import ResNetCase, _workload
from archbench.track import Contender

CONTENDER: Contender[ResNetCase] = Contender(build=_workload.factory("layer"))
