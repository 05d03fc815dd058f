"""mixture-of-experts: its gating, one-hot dispatch and combine, around the experts of the layer.

MoE of that package with experts of the caller as its parameter ``experts`` allows: they get (E, B C, D) at once and
answer by two batched products. What is compared is everything around them: gates, masks, positions by cumulative sums,
a dispatch tensor (B, T, E, C) and two products with it. The balance loss that it always computes is left unread.

It routes as GShard does, with room for C tokens. Dropless means the policy ``all`` for second experts, and a capacity
factor of E, which makes room for all T tokens of a group: C = T rows per expert and group are computed, of which
2 T / E hold a token. The 1e-9 that it adds to the sum of two probabilities is set to zero, as its gating allows: for
float64 it is a visible error.

Letters: B groups, T tokens of a group, D width, H hidden units, F = 2 H, E experts, C capacity, M = B C.

Source: https://github.com/lucidrains/mixture-of-experts; Lepikhin et al. 2020, arXiv:2006.16668
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from archbench.kernels.moe_ffn import MoeCase
from archbench.kernels.moe_ffn._peers import refuse
from archbench.quiet import quiet_import
from archbench.track import Call, Contender, Unavailable

with quiet_import():
    from mixture_of_experts import MoE
    from mixture_of_experts.mixture_of_experts import Top2Gating


class Experts(nn.Module):
    """All experts at once; the weights come with the call."""

    def __init__(self) -> None:
        super().__init__()
        self.w_in = nn.Parameter(torch.empty(0))
        self.w_out = nn.Parameter(torch.empty(0))

    def forward(self, x_EMD: Tensor) -> Tensor:
        gate_EMH, up_EMH = torch.bmm(x_EMD, self.w_in.transpose(1, 2)).chunk(2, dim=-1)
        return torch.bmm(F.silu(gate_EMH) * up_EMH, self.w_out)


def _build(case: MoeCase) -> Call:
    refuse(case, "mixture-of-experts")
    if case.top_k != 2:
        raise Unavailable(f"mixture-of-experts asks 2 experts for every token, not {case.top_k}")
    moe = MoE(case.dim, num_experts=case.experts, experts=Experts())
    moe.gate = Top2Gating(
        case.dim, case.experts, eps=0.0, second_policy_eval="all", capacity_factor_eval=float(case.experts)
    )
    moe.eval()

    def layer(x_BTD: Tensor, router_ED: Tensor, w_in_EFD: Tensor, w_out_EHD: Tensor, uniform_BT: Tensor) -> Any:
        weights = {"gate.w_gating": router_ED.T, "experts.w_in": w_in_EFD, "experts.w_out": w_out_EHD}
        return functional_call(moe, weights, (x_BTD,))[0]

    return layer


CONTENDER: Contender[MoeCase] = Contender(build=_build, family="peer")
