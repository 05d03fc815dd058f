"""Products of a few hundred rows, and what comes between the two of an expert.

On CPUs oneDNN is asked directly: it multiplies float32 faster than the BLAS behind ``torch.mm`` and applies an
activation, or a product with another tensor, to what it has just computed, so that a gated layer needs no pass of its
own for the gate (docs/notes/moe_ffn.md has the measurements). What it does not know (float64) and other devices take
``torch.mm``.

Letters: M rows, K columns, N rows of the other matrix, D width, H hidden units, F = 2 H for gated layers, else H.

Source: https://uxlfoundation.github.io/oneDNN (post-ops); Shazeer 2020, arXiv:2002.05202 (gated layers)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Literal["swiglu", "relu"]

_THEN = {"none": lambda said: said, "relu": torch.relu, "swish": F.silu}


def by_onednn(tensor: Tensor) -> bool:
    """Whether oneDNN multiplies tensors like this one here."""
    if tensor.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if tensor.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return tensor.dtype is torch.float32


def product(a_MK: Tensor, b_NK: Tensor, then: str = "none") -> Tensor:
    """(M, N): rows of a with rows of b, in any strides, and oneDNN's activation of that name."""
    if by_onednn(a_MK):
        said: Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_NK, None, then, [], "")
        return said
    return _THEN[then](a_MK @ b_NK.T)


def hidden_of(activation: Activation, x_MD: Tensor, w_in_FD: Tensor) -> Tensor:
    """(M, H), with nothing kept for a backward."""
    if activation == "relu":
        return product(x_MD, w_in_FD, "relu")
    gate_HD, up_HD = w_in_FD.chunk(2)
    if by_onednn(x_MD):
        gate_MH = product(x_MD, gate_HD, "swish")
        hidden_MH: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x_MD, gate_MH, up_HD, None, "mul")
        return hidden_MH
    return activated(activation, x_MD @ w_in_FD.T)[0]


def activated(activation: Activation, h_MF: Tensor) -> tuple[Tensor, Tensor]:
    """(M, H) twice: the hidden units, and what ``slope`` wants beside h: the open gate, or the units themselves."""
    if activation == "relu":
        hidden_MH = h_MF.relu()
        return hidden_MH, hidden_MH
    gate_MH, up_MH = h_MF.chunk(2, dim=-1)
    open_MH = F.silu(gate_MH)
    return open_MH * up_MH, open_MH


def slope(activation: Activation, h_MF: Tensor, open_MH: Tensor, dhidden_MH: Tensor) -> Tensor:
    """(M, F): the gradient of h. Overwrites dhidden."""
    if activation == "relu":
        return dhidden_MH.mul_(open_MH > 0)
    gate_MH, up_MH = h_MF.chunk(2, dim=-1)
    dh_MF = torch.empty_like(h_MF)
    dgate_MH, dup_MH = dh_MF.chunk(2, dim=-1)
    torch.mul(dhidden_MH, open_MH, out=dup_MH)
    torch.ops.aten.silu_backward.grad_input(dhidden_MH.mul_(up_MH), gate_MH, grad_input=dgate_MH)
    return dh_MF
