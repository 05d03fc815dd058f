"""4 bits for weights and inputs, without training, symmetric: each tensor to its largest magnitude.

One step for a whole matrix and one for an activation, zero in the middle of the levels: what rounding costs that takes
no care.

Source: Jacob et al. 2018, arXiv:1712.05877 (uniform quantisation); Dettmers et al. 2022, arXiv:2208.07339 (absmax)
"""

from __future__ import annotations

from archbench.models.vit_int4 import VitCase
from archbench.models.vit_int4._layers import rounding
from archbench.models.vit_int4._method import EXTREMES, Method
from archbench.models.vit_int4._plan import Bits
from archbench.track import Contender


def build(case: VitCase) -> Method:
    return Method(rounding(case.plan(Bits(4, 4), "absmax")), calibration=EXTREMES)


CONTENDER: Contender[VitCase] = Contender(build=build)
