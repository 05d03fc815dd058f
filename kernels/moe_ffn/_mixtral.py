"""Mixtral's router and experts as Hugging Face transformers has them, with the layer's weights.

MixtralTopKRouter and MixtralExperts, the two parts of MixtralSparseMoeBlock; what the block adds is a change of shape.
The layer's weights are used as they are: ``gate_up_proj`` is w_in, ``down_proj`` a transposed view of w_out. The router
is given float32 where the rest is bf16: its own module in bf16 sends tokens elsewhere than the layer does.

Letters: B groups, T tokens of a group, N = B T, D width, H hidden units, F = 2 H, E experts, K experts of a token.

Source: https://github.com/huggingface/transformers; Jiang et al. 2024, arXiv:2401.04088
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from archbench.kernels.moe_ffn import MoeCase
from archbench.quiet import quiet_import
from archbench.track import Call, Unavailable

with quiet_import():  # it imports torchao where that is installed
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts, MixtralTopKRouter


def layer(case: MoeCase, implementation: str) -> Call:
    """The layer with the library's implementation of that name. Raises Unavailable."""
    if case.router != "topk":
        raise Unavailable(f"Mixtral has no {case.router.replace('_', ' ')} routing")
    if case.dtype == "fp64":
        raise Unavailable("Mixtral's router rounds probabilities to float32")
    config = MixtralConfig(
        hidden_size=case.dim,
        intermediate_size=case.hidden,
        num_local_experts=case.experts,
        num_experts_per_tok=case.top_k,
        experts_implementation=implementation,
    )
    with torch.device("meta"):  # their weights come with the call
        router, experts = MixtralTopKRouter(config), MixtralExperts(config)

    def call(x_BTD: Tensor, router_ED: Tensor, w_in_EFD: Tensor, w_out_EHD: Tensor, uniform_BT: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        _, weight_NK, expert_NK = functional_call(router, {"weight": router_ED.float()}, (x_ND.float(),))
        weights = {"gate_up_proj": w_in_EFD, "down_proj": w_out_EHD.transpose(1, 2)}
        y_ND: Tensor = functional_call(experts, weights, (x_ND, expert_NK, weight_NK))
        return y_ND.view_as(x_BTD)

    return call
