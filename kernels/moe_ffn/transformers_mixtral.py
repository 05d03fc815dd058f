"""Mixtral's router and experts as Hugging Face transformers has them, with the implementation that is fastest here.

MixtralTopKRouter and MixtralExperts, the two parts of MixtralSparseMoeBlock; what the block adds is a change of shape.
The layer's weights are used as they are: ``gate_up_proj`` is w_in, ``down_proj`` a transposed view of w_out. The router
is given float32 where the rest is bf16: its own module in bf16 sends tokens elsewhere than the layer does.

The library has several implementations of the experts. ``grouped_mm`` (rows sorted by expert, ``torch._grouped_mm``) is
what a model is loaded with on any device; ``eager`` is a loop over the experts. In pairs on two cores eager took 0.7 to
1.1 of the time of grouped_mm forward, where that one waits for fresh memory, and 1.1 to 1.3 of it with gradients, where
the loop fills a gradient of all experts for each. ``batched_mm`` copies the matrices of a token's experts for every
token, and is for a handful of tokens. So it is eager forward on a CPU, else grouped_mm; that wants rows of a multiple
of 16 bytes, and where they are none it is eager again.

Letters: B groups, T tokens of a group, N = B T, D width, H hidden units, F = 2 H, E experts, K experts of a token.

Source: https://github.com/huggingface/transformers; Jiang et al. 2024, arXiv:2401.04088
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from archbench.kernels.moe_ffn import DTYPE_BYTES, MoeCase
from archbench.quiet import quiet_import
from archbench.track import Call, Contender, Unavailable

with quiet_import():  # it imports torchao where that is installed
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts, MixtralTopKRouter

ROW_BYTES = 16  # torch._grouped_mm takes matrices whose rows are a multiple of it


def implementation(case: MoeCase, on_gpu: bool) -> str:
    """The library's name of its fastest implementation for the case."""
    fits = all(size * DTYPE_BYTES[case.dtype] % ROW_BYTES == 0 for size in (case.dim, case.hidden))
    return "grouped_mm" if fits and (case.backward or on_gpu) else "eager"


def _build(case: MoeCase) -> Call:
    if case.router != "topk":
        raise Unavailable(f"Mixtral has no {case.router.replace('_', ' ')} routing")
    if case.dtype == "fp64":
        raise Unavailable("Mixtral's router rounds probabilities to float32")

    def config(experts_implementation: str) -> MixtralConfig:
        return MixtralConfig(
            hidden_size=case.dim,
            intermediate_size=case.hidden,
            num_local_experts=case.experts,
            num_experts_per_tok=case.top_k,
            experts_implementation=experts_implementation,
        )

    with torch.device("meta"):  # their weights come with the call
        router = MixtralTopKRouter(config("eager"))
        experts = {on_gpu: MixtralExperts(config(implementation(case, on_gpu))) for on_gpu in (False, True)}

    def layer(x_BTD: Tensor, router_ED: Tensor, w_in_EFD: Tensor, w_out_EHD: Tensor, uniform_BT: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        _, weight_NK, expert_NK = functional_call(router, {"weight": router_ED.float()}, (x_ND.float(),))
        weights = {"gate_up_proj": w_in_EFD, "down_proj": w_out_EHD.transpose(1, 2)}
        y_ND: Tensor = functional_call(experts[x_BTD.is_cuda], weights, (x_ND, expert_NK, weight_NK))
        return y_ND.view_as(x_BTD)

    return layer


CONTENDER: Contender[MoeCase] = Contender(build=_build, family="peer")
