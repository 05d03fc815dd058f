"""st-moe-pytorch: its gating, one-hot dispatch and combine, around the experts of the layer.

MoE of that package, in evaluation mode (no auxiliary losses, which topk routing has not), with experts of the caller
as its parameter ``experts`` allows. What is compared is everything around the experts: gates, masks, positions by
cumulative sums, a dispatch tensor (B, T, E, C) and two products with it, one expert after the other on (B, C, D).

It routes as GShard does, with room for C tokens and a second expert that is drawn. Dropless means a threshold of zero,
which draws everybody, and a capacity factor of E, which makes room for all T tokens of a group: C = T rows per expert
and group are computed, of which T K / E hold a token. ``straight_through_dispatch_tensor`` is off: it adds a gradient
to the router that the layer does not have.

Letters: B groups, T tokens of a group, D width, H hidden units, F = 2 H, E experts, K experts of a token, C capacity.

Source: https://github.com/lucidrains/st-moe-pytorch; Zoph et al. 2022, arXiv:2202.08906
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from archbench.kernels.moe_ffn import MoeCase
from archbench.kernels.moe_ffn._layers import expert
from archbench.kernels.moe_ffn._peers import refuse
from archbench.quiet import quiet_import
from archbench.track import Call, Contender, Unavailable

with quiet_import():  # beartype complains of annotations that Python has since deprecated
    from st_moe_pytorch import MoE


class Lent(nn.Module):
    """An expert with weights that are lent to it for a call. Not as parameters: the package moves those about."""

    weights: tuple[Tensor, Tensor] | None = None

    def forward(self, x_BCD: Tensor) -> Tensor:
        assert self.weights is not None, "called without weights"
        return expert(x_BCD, *self.weights)


def _build(case: MoeCase) -> Call:
    refuse(case, "st-moe-pytorch")
    if case.top_k == 1:
        raise Unavailable("st-moe-pytorch has no top-1 routing: its gates want 2 experts at least")
    experts = nn.ModuleList(Lent() for _ in range(case.experts))
    moe = MoE(
        case.dim,
        num_experts=case.experts,
        experts=experts,
        gating_top_n=case.top_k,
        threshold_eval=0.0,
        capacity_factor_eval=float(case.experts),
        straight_through_dispatch_tensor=False,
        is_distributed=False,
    ).eval()

    def layer(x_BTD: Tensor, router_ED: Tensor, w_in_EFD: Tensor, w_out_EHD: Tensor, uniform_BT: Tensor) -> Any:
        moe.to(x_BTD.device)
        for one, *weights in zip(experts, w_in_EFD.unbind(), w_out_EHD.unbind(), strict=True):
            one.weights = weights
        try:
            return functional_call(moe, {"gate.to_gates.weight": router_ED}, (x_BTD,)).outputs
        finally:
            for one in experts:
                one.weights = None

    return layer


CONTENDER: Contender[MoeCase] = Contender(build=_build, family="peer")
