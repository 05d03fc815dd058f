"""Tokens sorted by expert and multiplied in groups, with gradients of its own: no expert runs out of room.

Where the case has capacities, whom they drop is left out of the list, and an expert's group is as short as what is
left. On CPUs a forward in float32 is C++ of our own, from gathered tokens to answers in one pass, where there is a
compiler; all else is each expert's two products by oneDNN, with the gate computed on the way out of the first.

Source: Gale et al. 2022, arXiv:2211.15841 (MegaBlocks); docs/notes/moe_ffn.md
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from archbench.kernels.moe_ffn import MoeCase
from archbench.kernels.moe_ffn._grouped import grouped_ffn
from archbench.kernels.moe_ffn._layers import answer, weights_of
from archbench.kernels.moe_ffn._routing import route
from archbench.track import Contender


def _layer(
    case: MoeCase, x_BTD: Tensor, router_ED: Tensor, w_in_EFD: Tensor, w_out_EHD: Tensor, uniform_BT: Tensor
) -> Any:
    weights_of(case, w_in_EFD, w_out_EHD)
    routing = route(case, x_BTD, router_ED, uniform_BT)
    return answer(case, grouped_ffn(x_BTD.flatten(0, 1), routing, w_in_EFD, w_out_EHD), routing)


CONTENDER: Contender[MoeCase] = Contender(build=lambda case: partial(_layer, case))
