"""Weights and inputs of all matrices in 8 bits, without training: ranges of least squared error."""

from __future__ import annotations

from archbench.models.vit_int4 import VitCase
from archbench.models.vit_int4._layers import rounding
from archbench.models.vit_int4._method import Method
from archbench.models.vit_int4._plan import Bits
from archbench.track import Contender


def build(case: VitCase) -> Method:
    return Method(rounding(case.plan(Bits(8, 8))))


CONTENDER: Contender[VitCase] = Contender(build=build)
