"""The layer without a router: the first experts side by side as one gated layer, for every token.

Letters: B groups, T tokens of a group, N = B T, D width, H hidden units, F = 2 H, E experts, S of them used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from archbench.kernels.moe_ffn import MoeCase
from archbench.kernels.moe_ffn._gate import compared
from archbench.kernels.moe_ffn._layers import expert, weights_of
from archbench.kernels.moe_ffn._workload import workload


@dataclass(frozen=True)
class Dense:
    """The sum of the first ``used`` experts, computed as one layer of ``used * H`` hidden units."""

    case: MoeCase
    used: int

    def learned(self, x_BTD: Tensor, router_ED: Tensor, w_in_EFD: Tensor, w_out_EHD: Tensor) -> tuple[Tensor, ...]:
        """What gets gradients in the backward cases. Raises ValueError for weights that are not the case's."""
        weights_of(self.case, w_in_EFD, w_out_EHD)
        return x_BTD, w_in_EFD[: self.used], w_out_EHD[: self.used]

    def __call__(
        self, x_BTD: Tensor, router_ED: Tensor, w_in_EFD: Tensor, w_out_EHD: Tensor, uniform_BT: Tensor
    ) -> Tensor:
        return self.apply(*self.learned(x_BTD, router_ED, w_in_EFD, w_out_EHD))

    def apply(self, x_BTD: Tensor, w_in_SFD: Tensor, w_out_SHD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        gate_NSH, up_NSH = (x_ND @ w_in_SFD.flatten(0, 1).T).unflatten(1, (self.used, 2, -1)).unbind(2)
        return ((F.silu(gate_NSH) * up_NSH).flatten(1) @ w_out_SHD.flatten(0, 1)).view_as(x_BTD)


@dataclass(frozen=True)
class DenseInTurn(Dense):
    """The same, one expert after the other: the reference."""

    def apply(self, x_BTD: Tensor, w_in_SFD: Tensor, w_out_SHD: Tensor) -> Tensor:
        said = (expert(x_BTD, *weights) for weights in zip(w_in_SFD, w_out_SHD, strict=True))
        return torch.stack(list(said)).sum(0)


def gate(case: MoeCase, inputs: tuple[Tensor, ...], outputs: Any, used: int) -> float:
    """Largest relative error of y and the gradients of x and the weights that are used. Raises Wrong."""
    names = ("y", "dx", "dw_in", "dw_out") if case.backward else ("y",)
    wide = tuple(tensor.double() for tensor in inputs)
    return compared(case, names, inputs, outputs, workload(case, DenseInTurn(case, used))(*wide))
