"""Weights in 4 bits, each to its nearest level, and everything else in floating point; groups of 32 share a scale.

Source: Dettmers & Zettlemoyer 2022, arXiv:2212.09720
"""

from __future__ import annotations

from archbench.models.vit_int4 import VitCase
from archbench.models.vit_int4._layers import rounding
from archbench.models.vit_int4._method import Method
from archbench.models.vit_int4._plan import FLOAT, Bits
from archbench.track import Contender, Unavailable

GROUP = 32


def build(case: VitCase) -> Method:
    if case.dim % GROUP:
        raise Unavailable(f"{case.dim} features do not divide into groups of {GROUP}")
    return Method(rounding(case.plan(Bits(4, FLOAT, GROUP))))


CONTENDER: Contender[VitCase] = Contender(build=build)
