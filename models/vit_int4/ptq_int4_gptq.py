"""Weights in 4 bits by GPTQ, and everything else in floating point; groups of 32 share a scale.

Weights are rounded a column at a time; those still to come make up for the error, as the calibration images weigh it.

Source: Frantar et al. 2022, arXiv:2210.17323
"""

from __future__ import annotations

from torch import Tensor

from archbench.models.vit_int4 import VitCase
from archbench.models.vit_int4._gptq import rounded
from archbench.models.vit_int4._method import Method
from archbench.models.vit_int4._plan import FLOAT, Bits
from archbench.models.vit_int4._vit import VisionTransformer
from archbench.track import Contender, Unavailable

GROUP = 32


def build(case: VitCase) -> Method:
    if case.dim % GROUP:
        raise Unavailable(f"{case.dim} features do not divide into groups of {GROUP}")
    plan = case.plan(Bits(4, FLOAT, GROUP))

    def convert(model: VisionTransformer, images: Tensor) -> VisionTransformer:
        return rounded(model, images, plan)

    return Method(convert)


CONTENDER: Contender[VitCase] = Contender(build=build)
