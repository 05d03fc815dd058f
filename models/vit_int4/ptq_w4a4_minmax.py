"""4 bits for weights and inputs, without training, ranges as PyTorch's default observers have them.

From minimum to maximum of the calibration images' activations, one range for a whole matrix: what rounding costs that
takes no care.

Source: https://docs.pytorch.org/docs/stable/quantization-support.html (MinMaxObserver)
"""

from __future__ import annotations

from archbench.models.vit_int4 import VitCase
from archbench.models.vit_int4._layers import rounding
from archbench.models.vit_int4._method import EXTREMES, Method
from archbench.models.vit_int4._plan import Bits
from archbench.track import Contender


def build(case: VitCase) -> Method:
    return Method(rounding(case.plan(Bits(4, 4), "minmax")), calibration=EXTREMES)


CONTENDER: Contender[VitCase] = Contender(build=build)
