"""One expert, and the mixture in its plainest form: a loop over the experts.

Letters: B groups, T tokens of a group, N = B T, D width, H hidden units, F = 2 H, E experts, A assignments.

Source: Shazeer 2020, arXiv:2002.05202 (SwiGLU); Shazeer et al. 2017, arXiv:1701.06538
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from archbench.kernels.moe_ffn import MoeCase
from archbench.kernels.moe_ffn._routing import Routing, route, shaped


def expert(x_MD: Tensor, w_in_FD: Tensor, w_out_HD: Tensor) -> Tensor:
    """(M, D)."""
    gate_MH, up_MH = (x_MD @ w_in_FD.T).chunk(2, dim=-1)
    return (F.silu(gate_MH) * up_MH) @ w_out_HD


def weights_of(case: MoeCase, w_in_EFD: Tensor, w_out_EHD: Tensor) -> None:
    """Raises ValueError naming the matrices that are not the case's."""
    shaped("w_in", w_in_EFD, (case.experts, 2 * case.hidden, case.dim))
    shaped("w_out", w_out_EHD, (case.experts, case.hidden, case.dim))


def answer(case: MoeCase, y_ND: Tensor, routing: Routing) -> Any:
    """What a call returns: y (B, T, D), and for all routers but topk the loss and the number of drops."""
    y_BTD = y_ND.view(case.groups, case.length, case.dim)
    return y_BTD if case.router == "topk" else (y_BTD, routing.loss, routing.dropped)


def expert_by_expert(
    case: MoeCase, x_BTD: Tensor, router_ED: Tensor, w_in_EFD: Tensor, w_out_EHD: Tensor, uniform_BT: Tensor
) -> Any:
    """Each expert takes its tokens, answers, and what it says is added to theirs. Raises ValueError naming an input."""
    weights_of(case, w_in_EFD, w_out_EHD)
    routing = route(case, x_BTD, router_ED, uniform_BT)
    x_ND = x_BTD.flatten(0, 1)
    y_ND = torch.zeros_like(x_ND, dtype=routing.weight_A.dtype)
    parts = zip(*(part.split(routing.counts_E.tolist()) for part in (routing.token_A, routing.weight_A)), strict=True)
    for number, (token_M, weight_M) in enumerate(parts):
        if len(token_M):
            said_MD = expert(x_ND[token_M], w_in_EFD[number], w_out_EHD[number])
            y_ND = y_ND.index_add(0, token_M, weight_M.unsqueeze(-1) * said_MD)
    return answer(case, y_ND.to(x_BTD.dtype), routing)
