"""GShard's layer: one-hot tensors of group, token, expert and place in it send tokens there and bring answers back.

An expert is a rectangle of C places in every group, so that all shapes are known before a token is seen, and both ways
are matrix products: ``dispatch`` (B, T, E, C) holds a 1 where a token has a place, ``combine`` its weight instead. What
that costs: B T E C D operations each way beside 3 E C B D H of the experts, and empty places are multiplied, too. In
dropless cases C is T, the room that no routing can exceed.

Letters: B groups, T tokens of a group, D width, H hidden units, F = 2 H, E experts, C places, A assignments.

Source: Lepikhin et al. 2020, arXiv:2006.16668, figure 2 and algorithm 2
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from archbench.kernels.moe_ffn import MoeCase
from archbench.kernels.moe_ffn._layers import answer, weights_of
from archbench.kernels.moe_ffn._routing import Routing, counted, route
from archbench.track import Contender


def places(case: MoeCase, routing: Routing) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Group, token in it, expert and place of every assignment, (A,) each.

    The list is sorted by expert and then by token, so by group: places count up from where an expert's group begins.
    """
    expert_A = routing.expert_A
    group_A = routing.token_A // case.length
    set_A = expert_A * case.groups + group_A
    size = counted(set_A, case.experts * case.groups)
    place_A = torch.arange(len(set_A), device=set_A.device) - (size.cumsum(0) - size)[set_A]
    return group_A, routing.token_A % case.length, expert_A, place_A


def _layer(
    case: MoeCase, x_BTD: Tensor, router_ED: Tensor, w_in_EFD: Tensor, w_out_EHD: Tensor, uniform_BT: Tensor
) -> Any:
    weights_of(case, w_in_EFD, w_out_EHD)
    routing = route(case, x_BTD, router_ED, uniform_BT)
    where = places(case, routing)
    empty_BTEC = x_BTD.new_zeros(case.groups, case.length, case.experts, case.capacity)
    combine_BTEC = empty_BTEC.index_put(where, routing.weight_A.to(x_BTD.dtype))
    dispatch_BTEC = empty_BTEC.index_put_(where, x_BTD.new_ones(()))
    sent_EBCD = torch.einsum("btec,btd->ebcd", dispatch_BTEC, x_BTD)
    gate_EMH, up_EMH = torch.bmm(sent_EBCD.flatten(1, 2), w_in_EFD.transpose(1, 2)).chunk(2, dim=-1)
    said_EMD = torch.bmm(F.silu(gate_EMH) * up_EMH, w_out_EHD)
    y_BTD = torch.einsum("btec,ebcd->btd", combine_BTEC, said_EMD.view_as(sent_EBCD))
    return answer(case, y_BTD.flatten(0, 1), routing)


CONTENDER: Contender[MoeCase] = Contender(build=lambda case: partial(_layer, case))
