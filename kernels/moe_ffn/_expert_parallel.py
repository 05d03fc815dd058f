"""The layer with its experts on several ranks: tokens travel to the experts and answers travel back.

Each of W ranks holds E / W experts, in the order of the ranks, and whole groups of tokens of its own. It routes its
tokens by itself, so groups keep their capacities and everybody routes as one process would. Then two exchanges of all
with all: rows of tokens to the ranks of their experts, before them how many for each expert; and back, an answer for a
row. The weights of a token's experts are applied at home, so a router's gradient needs no third exchange. The backward
pass makes the same two exchanges in the other direction.

On the wire, for the R assignments of all ranks whose expert lives on another rank than their token: 2 R D itemsize
bytes forward, the same again backward, and 8 E (W - 1) bytes of counts. With balanced routing R = A (W - 1) / W.

How much a rank receives is known when the counts arrive, and an exchange has to be told in host memory: on a GPU, over
NCCL as over any other backend, the host waits for the device once a call. Only a capacity, which makes all pieces
equal and sends empty places, does without.

Letters: B groups, T tokens of a group, N = B T, D width, H hidden units, F = 2 H, E experts, L = E / W of them here,
W ranks, A assignments that are kept, M rows that this rank's experts answer.

Source: Lepikhin et al. 2020, arXiv:2006.16668, section 3.3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed

from archbench.kernels.moe_ffn import MoeCase
from archbench.kernels.moe_ffn._grouped import grouped_ffn
from archbench.kernels.moe_ffn._routing import Routing, route, shaped


class Exchange(torch.autograd.Function):
    """Rows for every rank from every rank; the gradients of rows go back where the rows came from."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent_W: Sequence[int], received_W: Sequence[int], group: distributed.ProcessGroup | None
    ) -> Tensor:
        ctx.back = received_W, sent_W, group
        return _exchanged(rows, sent_W, received_W, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchanged(gradient, *ctx.back), None, None, None


def _exchanged(
    rows: Tensor, sent_W: Sequence[int], received_W: Sequence[int], group: distributed.ProcessGroup | None
) -> Tensor:
    received = rows.new_empty(sum(received_W), *rows.shape[1:])
    distributed.all_to_all_single(received, rows.contiguous(), list(received_W), list(sent_W), group=group)
    return received


def expert_parallel(
    case: MoeCase,
    x_BTD: Tensor,
    router_ED: Tensor,
    w_in_LFD: Tensor,
    w_out_LHD: Tensor,
    uniform_BT: Tensor,
    group: distributed.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, T, D) of this rank's groups, and its shares of the loss and of the drops: over all ranks they add up.

    ``case`` is the whole layer; a rank may have any number of its groups, none as well. All ranks of ``group`` have to
    call. Each goes backward from its own y and share of the loss: gradients of x and of its experts are then whole,
    those of the router want to be added up over the ranks. Raises ValueError where the experts cannot be spread evenly,
    and for an input that the layer does not take: the others then wait for this rank until their group gives up.
    """
    ranks = distributed.get_world_size(group)
    if case.experts % ranks:
        raise ValueError(f"experts is {case.experts}: {ranks} ranks need a multiple of {ranks}")
    here = case.experts // ranks
    shaped("w_in", w_in_LFD, (here, 2 * case.hidden, case.dim))
    shaped("w_out", w_out_LHD, (here, case.hidden, case.dim))
    x_ND = x_BTD.flatten(0, 1)
    routing = _routing_here(case, x_BTD, router_ED, uniform_BT)
    counts_WL = routing.counts_E.view(ranks, here)  # of this rank's tokens, by where the expert lives
    asked_WL = _exchanged(counts_WL, [1] * ranks, [1] * ranks, group)  # of whose tokens, for the experts here
    sent_W, received_W = torch.stack((counts_WL.sum(1), asked_WL.sum(1))).tolist()

    arrived_MD = Exchange.apply(x_ND[routing.token_A], sent_W, received_W, group)
    said_AD = Exchange.apply(_answers(arrived_MD, asked_WL, w_in_LFD, w_out_LHD), received_W, sent_W, group)
    weighted_AD = routing.weight_A.unsqueeze(-1) * said_AD
    y_ND = torch.zeros_like(x_ND, dtype=weighted_AD.dtype).index_add(0, routing.token_A, weighted_AD)
    share = len(x_BTD) / case.groups
    return y_ND.to(x_BTD.dtype).view_as(x_BTD), routing.loss * share, routing.dropped


def _routing_here(case: MoeCase, x_BTD: Tensor, router_ED: Tensor, uniform_BT: Tensor) -> Routing:
    shaped("x", x_BTD, (len(x_BTD), case.length, case.dim))
    shaped("router", router_ED, (case.experts, case.dim))
    if len(x_BTD):
        return route(replace(case, groups=len(x_BTD)), x_BTD, router_ED, uniform_BT)
    nobody = x_BTD.new_empty(0, dtype=torch.int64)
    precise = torch.promote_types(x_BTD.dtype, torch.float32)
    return Routing(
        token_A=nobody,
        weight_A=nobody.to(precise),
        counts_E=nobody.new_zeros(case.experts),
        loss=x_BTD.new_zeros((), dtype=precise),
        dropped=nobody.new_zeros(()),
    )


def _answers(rows_MD: Tensor, asked_WL: Tensor, w_in_LFD: Tensor, w_out_LHD: Tensor) -> Tensor:
    """(M, D): what the experts here say to rows that are sorted by rank and then by expert, in their order."""
    number_M = torch.arange(asked_WL.numel(), device=rows_MD.device).remainder(asked_WL.shape[1])
    order_M = number_M.repeat_interleave(asked_WL.flatten()).argsort(stable=True)
    none = order_M.new_zeros(())
    by_expert = Routing(
        token_A=order_M,
        weight_A=torch.ones_like(order_M, dtype=rows_MD.dtype),
        counts_E=asked_WL.sum(0),
        loss=none,
        dropped=none,
        slots_NK=order_M.argsort().unsqueeze(-1),
    )
    return grouped_ffn(rows_MD, by_expert, w_in_LFD, w_out_LHD)
