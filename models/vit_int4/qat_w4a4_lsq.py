"""4 bits for weights and inputs, trained with them: the steps are learned (LSQ+), forward and backward our own.

Starts from the ranges of least squared error; on a CPU each quantiser is one pass over memory each way.

Source: Esser et al. 2020, arXiv:1902.08153; Bhalgat et al. 2020, arXiv:2004.09576
"""

from __future__ import annotations

from archbench.models.vit_int4 import VitCase
from archbench.models.vit_int4._layers import rounding
from archbench.models.vit_int4._method import Method
from archbench.models.vit_int4._plan import Bits
from archbench.track import Contender

BITS = Bits(4, 4)


def build(case: VitCase) -> Method:
    return Method(rounding(case.plan(BITS)), trains=True, bits=BITS)


CONTENDER: Contender[VitCase] = Contender(build=build)
