"""All experts as one product through ``torch._grouped_mm``, whose groups are rows between two ends.

The ends are a tensor, so a GPU needs no word from the host about who got how many tokens. Its kernel for bfloat16
wants rows that begin at multiples of 16 bytes; other dtypes are a loop there that reads the ends on the host. Gradients
of the matrices sum over the rows of a group. With the left factor in columns and the right one in rows, as here, a
group may begin anywhere and be empty; in another layout its length would have to be a multiple of eight.

Letters: D width, H hidden units, F = 2 H for gated layers, else H, E experts, A assignments.

Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.grouped_mm.html; what a group's length has to
be: aten/src/ATen/native/cuda/GroupMMCommon.cuh of PyTorch
"""

from __future__ import annotations

import torch
from torch import Tensor

from archbench.kernels.moe_ffn._products import Activation, activated, slope

ALIGNED_BYTES = 16


def fits(x_ND: Tensor, w_in_EFD: Tensor, w_out_EHD: Tensor) -> bool:
    """Whether a GPU's kernel takes these."""
    if x_ND.device.type != "cuda" or x_ND.dtype is not torch.bfloat16 or not hasattr(torch, "_grouped_mm"):
        return False
    return all(size * x_ND.element_size() % ALIGNED_BYTES == 0 for size in (*w_in_EFD.shape[1:], *w_out_EHD.shape[1:]))


def forward(
    activation: Activation, x_AD: Tensor, w_in_EFD: Tensor, w_out_EHD: Tensor, ends_E: Tensor
) -> tuple[Tensor, Tensor]:
    """h (A, F) and what the experts say (A, D)."""
    h_AF = torch._grouped_mm(x_AD, w_in_EFD.transpose(1, 2), offs=ends_E)
    return h_AF, torch._grouped_mm(activated(activation, h_AF)[0], w_out_EHD, offs=ends_E)


def backward(
    activation: Activation,
    dsaid_AD: Tensor,
    x_AD: Tensor,
    h_AF: Tensor,
    w_in_EFD: Tensor,
    w_out_EHD: Tensor,
    ends_E: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (A, D), w_in and w_out."""
    hidden_AH, open_AH = activated(activation, h_AF)
    dhidden_AH = torch._grouped_mm(dsaid_AD, w_out_EHD.transpose(1, 2), offs=ends_E)
    dw_out_EHD = torch._grouped_mm(hidden_AH.T, dsaid_AD, offs=ends_E)
    dh_AF = slope(activation, h_AF, open_AH, dhidden_AH)
    dw_in_EFD = torch._grouped_mm(dh_AF.T, x_AD, offs=ends_E)
    return torch._grouped_mm(dh_AF, w_in_EFD, offs=ends_E), dw_in_EFD, dw_out_EHD
