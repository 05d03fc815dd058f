"""4 bits for weights, 8 for inputs, trained with them by Brevitas: learned ranges and zero points.

Source: https://github.com/Xilinx/brevitas
"""

from __future__ import annotations

from torch import Tensor, nn

from archbench.models.vit_int4 import VitCase
from archbench.models.vit_int4._brevitas import converted, finished
from archbench.models.vit_int4._method import Method
from archbench.models.vit_int4._plan import Bits
from archbench.models.vit_int4._vit import VisionTransformer
from archbench.track import Contender

BITS = Bits(4, 8)


def build(case: VitCase) -> Method:
    plan = case.plan(BITS)

    def convert(model: VisionTransformer, images: Tensor) -> nn.Module:
        return converted(model, images, plan)

    return Method(convert, trains=True, finish=finished, bits=BITS)


CONTENDER: Contender[VitCase] = Contender(build=build, family="brevitas")
