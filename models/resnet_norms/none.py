"""No norm: Fixup, with a gain and shifts in its place and branches that start at zero.

The control: what a norm is worth is the distance from here.

Source: Zhang, Dauphin & Ma 2019, arXiv:1901.09321
"""

from archbench.models.resnet_norms import ResNetCase, _workload
from archbench.track import Contender

CONTENDER: Contender[ResNetCase] = Contender(build=_workload.factory("none"))
