"""Grouped products in Triton, written for this benchmark: gather, SwiGLU, weights and gradients fused.

Tokens are fetched by the first product where they lie; the gate never leaves the chip; answers come out weighted and
are added up token by token in a fixed order. The backward is four more products: one gives the gradients of hidden
units and of the router's weights, ``out_product`` with the other matrix gives dx, two give the weights' gradients.
Tiles find their expert on the device, so the host never waits for a count. Blocks are chosen by the clock when a shape
is first seen, and remembered on disk. Not measured on a GPU: candidates were chosen by counting and compile without
spills.

Source: Gale et al. 2022, arXiv:2211.15841; docs/notes/moe_ffn_triton.md
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from archbench.kernels.moe_ffn import MoeCase
from archbench.kernels.moe_ffn import _triton_launch as launch
from archbench.kernels.moe_ffn._layers import answer, weights_of
from archbench.kernels.moe_ffn._routing import Routing, route
from archbench.kernels.moe_ffn._triton_launch import Plan, can_copy
from archbench.kernels.moe_ffn._triton_space import Config, Kernel, rows_of_a_tile, shared_bytes, space
from archbench.kernels.triton_tuning import Launch, Tuner
from archbench.track import Call, Contender, Unavailable

TUNER = Tuner("triton_grouped", Config, tuple(sorted(Path(__file__).parent.glob("_triton_*.py"))))
_CHOSEN: dict[tuple[Any, ...], Config] = {}  # by kernel, shapes, dtype and device


@cache
def _gpu(device: torch.device) -> tuple[int, int]:
    """Compute capability's major number, and the bytes of shared memory a block may have."""
    properties = torch.cuda.get_device_properties(device)
    return int(properties.major), int(properties.shared_memory_per_block_optin)


def _decide(kernel: Kernel, plan: Plan, like: Tensor, widths: tuple[int, ...], run: Launch[Config]) -> Config:
    """Take the file's word or race the candidates for these shapes."""
    if triton.knobs.runtime.interpret:  # nothing to measure, and any is as right
        return space(kernel, plan.block_m, like.dtype, 8)[0]
    major, room = _gpu(like.device)
    copied = space(kernel, plan.block_m, like.dtype, major)
    candidates = copied if can_copy(copied[0], *widths) else space(kernel, plan.block_m, like.dtype, 8)
    fitting = tuple(one for one in candidates if shared_bytes(kernel, one, like.dtype) <= room)
    sizes = f"a{plan.asked} e{plan.experts} m{plan.block_m} {widths}"
    return TUNER.fastest(f"{kernel} {like.dtype} {sizes}", fitting, run).config


def _choose(kernel: Kernel, plan: Plan, like: Tensor, widths: tuple[int, ...], run: Launch[Config]) -> Config:
    key = (kernel, widths, plan.asked, plan.experts, plan.block_m, like.dtype, like.device)
    if key not in _CHOSEN:
        _CHOSEN[key] = _decide(kernel, plan, like, widths, run)
    return _CHOSEN[key]


def _in(plan: Plan, x_ND: Tensor, w_in_EFD: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    def run(config: Config) -> tuple[Tensor, Tensor]:
        return launch.in_product(plan, x_ND, w_in_EFD, keep, config)

    return run(_choose("in", plan, x_ND, tuple(w_in_EFD.shape[1:]), run))


def _out(plan: Plan, rows_AK: Tensor, w_EKD: Tensor, weight_A: Tensor | None) -> Tensor:
    """(N, D): the rows times their experts' matrices, added up by token."""

    def run(config: Config) -> Tensor:
        return launch.out_product(plan, rows_AK, w_EKD, weight_A, config)

    return launch.combine(plan, run(_choose("out", plan, rows_AK, tuple(w_EKD.shape[1:]), run)))


def _weights(plan: Plan, left_AP: Tensor, right_ND: Tensor) -> Tensor:
    def run(config: Config) -> Tensor:
        return launch.weight_gradient(plan, left_AP, right_ND, config)

    return run(_choose("weights", plan, left_AP, (left_AP.shape[1], right_ND.shape[1]), run))


class _Experts(torch.autograd.Function):
    """y (N, D) of tokens, weights of assignments and both matrices of the experts."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_A: Tensor, w_in_EFD: Tensor, w_out_EHD: Tensor, plan: Plan) -> Tensor:
        h_AH, gates_AF = _in(plan, x_ND, w_in_EFD, True)
        ctx.save_for_backward(x_ND, weight_A, w_in_EFD, w_out_EHD, gates_AF)
        ctx.plan = plan
        return _out(plan, h_AH, w_out_EHD, weight_A)

    @staticmethod
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_A, w_in_EFD, w_out_EHD, gates_AF = ctx.saved_tensors
        plan: Plan = ctx.plan
        dy_ND = _dense(dy_ND)

        def run(config: Config) -> tuple[Tensor, Tensor, Tensor]:
            return launch.hidden_gradient(plan, dy_ND, w_out_EHD, weight_A, gates_AF, config)

        chosen = _choose("hidden", plan, dy_ND, tuple(w_out_EHD.shape[1:]), run)
        dgates_AF, weighted_AH, slopes = run(chosen)
        return (
            _out(plan, dgates_AF, w_in_EFD, None),
            slopes.sum(0),
            _weights(plan, dgates_AF, x_ND),
            _weights(plan, weighted_AH, dy_ND),
            None,
        )


def _dense(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it is strided or starts off the 16 bytes that wide loads and the copy engine need."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def by_token(routing: Routing, tokens: int) -> tuple[Tensor, Tensor]:
    """Rows of the list, token by token, and where each token's end."""
    device = routing.token_A.device
    if routing.slots_NK is not None:
        top_k = routing.slots_NK.shape[1]
        return routing.slots_NK.flatten(), torch.arange(1, tokens + 1, device=device) * top_k
    token_A, slots_A = routing.token_A.sort(stable=True)
    return slots_A, torch.searchsorted(token_A, torch.arange(tokens, device=device), right=True)


def _build(case: MoeCase) -> Call:
    if case.dtype == "fp64":
        raise Unavailable("its kernels have no fp64")

    def mixture(x_BTD: Tensor, router_ED: Tensor, w_in_EFD: Tensor, w_out_EHD: Tensor, uniform_BT: Tensor) -> Any:
        weights_of(case, w_in_EFD, w_out_EHD)
        routing = route(case, x_BTD, router_ED, uniform_BT)
        x_ND, w_in_EFD, w_out_EHD = _dense(x_BTD.flatten(0, 1)), _dense(w_in_EFD), _dense(w_out_EHD)
        asked = case.assignments or case.tokens * case.top_k
        rows = rows_of_a_tile(asked, case.experts, x_ND.dtype)
        plan = launch.plan(routing.token_A, routing.counts_E, *by_token(routing, case.tokens), rows, asked)
        weight_A = routing.weight_A.contiguous()
        if torch.is_grad_enabled():
            y_ND = _Experts.apply(x_ND, weight_A, w_in_EFD, w_out_EHD, plan)
        else:
            h_AH, _ = _in(plan, x_ND, w_in_EFD, False)
            y_ND = _out(plan, h_AH, w_out_EHD, weight_A)
        return answer(case, y_ND, routing)

    return mixture


CONTENDER: Contender[MoeCase] = Contender(build=_build, device="cuda")
