"""4 bits for weights and inputs, without training, each range where rounding and clipping together err least.

A range for each row of a matrix and one for each activation, found by trying on the calibration images.

Source: Banner et al. 2019, arXiv:1810.05723
"""

from __future__ import annotations

from archbench.models.vit_int4 import VitCase
from archbench.models.vit_int4._layers import rounding
from archbench.models.vit_int4._method import Method
from archbench.models.vit_int4._plan import Bits
from archbench.track import Contender


def build(case: VitCase) -> Method:
    return Method(rounding(case.plan(Bits(4, 4))))


CONTENDER: Contender[VitCase] = Contender(build=build)
