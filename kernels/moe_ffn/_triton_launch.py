"""The kernels of ``triton_grouped`` on tensors, each with a configuration that is given.

Letters: N tokens, D width, H hidden units, F = 2 H, P either, E experts, A assignments, K depth of a product.

Source: https://triton-lang.org/main/python-api/triton.html
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from archbench.kernels.moe_ffn import _triton_backward as backward
from archbench.kernels.moe_ffn import _triton_forward as forward
from archbench.kernels.moe_ffn import _triton_tiles as tiles
from archbench.kernels.moe_ffn._triton_space import Config

COLUMNS = 1024  # of a program that adds up answers: 16 bytes a thread in bfloat16


@dataclass(frozen=True)
class Plan:
    """Who is answered by whom, and which tile of rows is whose."""

    token_A: Tensor  # int64
    slots_A: Tensor  # int64: rows of the list, token by token
    ends_N: Tensor  # int64: where each token's end in slots
    bounds: Tensor  # int32 [2, E + 1]: where each expert's rows and tiles begin
    owners: Tensor  # int32: the expert of a tile; as many as there can be
    block_m: int
    asked: int  # assignments there may be: how many there are differs from call to call

    @property
    def experts(self) -> int:
        return self.bounds.shape[1] - 1


def plan(token_A: Tensor, counts_E: Tensor, slots_A: Tensor, ends_N: Tensor, block_m: int, asked: int) -> Plan:
    """Lay out tiles of ``block_m`` rows on the device."""
    experts, device = len(counts_E), token_A.device
    # Each expert leaves part of a tile empty at most, and none is without a row.
    most = min(len(token_A), (len(token_A) + experts * (block_m - 1)) // block_m)
    bounds = torch.empty(2, experts + 1, dtype=torch.int32, device=device)
    owners = torch.empty(most, dtype=torch.int32, device=device)
    tiles.schedule[(experts,)](
        counts_E, bounds, owners, experts, EXPERTS=triton.next_power_of_2(experts), BLOCK_M=block_m
    )
    return Plan(token_A, slots_A, ends_N, bounds, owners, block_m, asked)


def _form(tensor: Tensor, config: Config, *tile: int) -> Any:
    """A tensor as a kernel takes it: itself, or a descriptor of tiles."""
    if not config.tma:
        return tensor
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), list(tile))


def can_copy(config: Config, *widths: int) -> bool:
    """Whether the copy engine takes rows of so many numbers of two bytes: it wants multiples of 16 bytes."""
    return not config.tma or all(width % 8 == 0 for width in widths)


def _options(config: Config, depth: int | None = None) -> dict[str, Any]:
    known = {} if depth is None else {"TMA": config.tma, "EVEN": depth % config.block_k == 0}
    blocks = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
    compiled = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return {**blocks, **known, **compiled, "WIDEN": triton.knobs.runtime.interpret}


@cache
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 3


def _grid(plan: Plan, blocks: int, config: Config) -> tuple[int]:
    """Programs for all tiles there can be, or as many as stay."""
    most = len(plan.owners) * blocks
    return (min(most, _processors(plan.owners.device)) if config.stays else most,)


def in_product(plan: Plan, x_ND: Tensor, w_in_EFD: Tensor, keep: bool, config: Config) -> tuple[Tensor, Tensor]:
    """h_AH and its two factors side by side, gates_AF; without ``keep`` those are empty."""
    experts, wide, dim = w_in_EFD.shape
    hidden, rows = wide // 2, len(plan.token_A)
    h_AH = x_ND.new_empty(rows, hidden)
    gates_AF = x_ND.new_empty(rows if keep else 0, wide)
    forward.in_product[_grid(plan, triton.cdiv(hidden, config.block_n), config)](
        x_ND, _form(w_in_EFD.view(2 * experts, hidden, dim), config, 2, config.block_n, config.block_k),
        plan.token_A, plan.bounds, plan.owners, h_AH, gates_AF, dim, hidden, experts,
        KEEP=keep, STAYS=config.stays, **_options(config, dim),
    )  # fmt: skip
    return h_AH, gates_AF


def out_product(plan: Plan, rows_AK: Tensor, w_EKD: Tensor, weight_A: Tensor | None, config: Config) -> Tensor:
    """rows_AD: each row times its expert's matrix, and times its weight where there is one."""
    experts, depth, dim = w_EKD.shape
    to_AD = rows_AK.new_empty(len(rows_AK), dim)
    forward.out_product[_grid(plan, triton.cdiv(dim, config.block_n), config)](
        _form(rows_AK, config, config.block_m, config.block_k),
        _form(w_EKD, config, 1, config.block_k, config.block_n),
        weight_A, plan.bounds, plan.owners, to_AD, depth, dim, experts, len(rows_AK),
        WEIGHTED=weight_A is not None, STAYS=config.stays, **_options(config, depth),
    )  # fmt: skip
    return to_AD


def combine(plan: Plan, rows_AD: Tensor) -> Tensor:
    """(N, D): the rows of each token added up."""
    tokens, dim = len(plan.ends_N), rows_AD.shape[1]
    to_ND = rows_AD.new_empty(tokens, dim)
    forward.combine[tokens, triton.cdiv(dim, COLUMNS)](
        rows_AD, plan.slots_A, plan.ends_N, to_ND, dim, BLOCK=COLUMNS, num_warps=4
    )
    return to_ND


def hidden_gradient(
    plan: Plan, dy_ND: Tensor, w_out_EHD: Tensor, weight_A: Tensor, gates_AF: Tensor, config: Config
) -> tuple[Tensor, Tensor, Tensor]:
    """dgates_AF, weight * h (A, H), and parts of dweight, float32 (blocks of H, A)."""
    experts, hidden, dim = w_out_EHD.shape
    rows, blocks = len(plan.token_A), triton.cdiv(hidden, config.block_n)
    dgates_AF, weighted_AH = torch.empty_like(gates_AF), dy_ND.new_empty(rows, hidden)
    slopes = dy_ND.new_empty(blocks, rows, dtype=torch.float32)
    backward.hidden_gradient[(len(plan.owners) * blocks,)](
        dy_ND, _form(w_out_EHD, config, 1, config.block_n, config.block_k),
        plan.token_A, weight_A, plan.bounds, plan.owners, gates_AF, dgates_AF, weighted_AH, slopes,
        dim, hidden, experts, rows, **_options(config, dim),
    )  # fmt: skip
    return dgates_AF, weighted_AH, slopes


def weight_gradient(plan: Plan, left_AP: Tensor, right_ND: Tensor, config: Config) -> Tensor:
    """(E, P, D): the sum over each expert's rows of left times what right holds for their tokens."""
    wide, dim = left_AP.shape[1], right_ND.shape[1]
    to_EPD = left_AP.new_empty(plan.experts, wide, dim)
    grid = plan.experts * triton.cdiv(wide, config.block_m) * triton.cdiv(dim, config.block_n)
    backward.weight_gradient[(grid,)](
        left_AP, right_ND, plan.token_A, plan.bounds, to_EPD, wide, dim, **_options(config)
    )
    return to_EPD
