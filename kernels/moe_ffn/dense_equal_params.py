"""One dense layer with as many parameters: all experts' hidden units for every token.

Source: Shazeer 2020, arXiv:2002.05202
"""

from __future__ import annotations

from typing import Any

from archbench.kernels.moe_ffn import MoeCase
from archbench.kernels.moe_ffn._dense import Dense, gate
from archbench.track import Contender


def _gate(case: MoeCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    return gate(case, inputs, outputs, case.experts)


CONTENDER: Contender[MoeCase] = Contender(
    build=lambda case: Dense(case, case.experts),
    family="torch",
    differs="a dense layer of equal parameters",
    gate=_gate,
)
