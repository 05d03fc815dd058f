"""The layers of the block: attention, Fourier and linear mixing, and the feed-forward layer.

A mixing maps x_BTD to y_BTD and is the constructor argument of a block. Fourier mixing is the real part of the 2-D
discrete Fourier transform over length and width. Its input is real, so half of the columns follow from the other half
by the symmetry ``Y[t, d] = Y[-t, -d]``; and the map is its own transpose, so the backward is the forward again.

Letters: B batch, T length, D width, H heads, K = D // 2 + 1 computed columns, F width of the
feed-forward layer, N tokens.

Source: Lee-Thorp et al. 2021, arXiv:2105.03824
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Numbers transformed at a time: 1 MiB of float32, with its half spectrum inside a core's second-level cache.
CHUNK_NUMBERS = 1 << 18
# Where nothing is saved for a backward, a block takes whole samples of about so many tokens at a time, and its
# feed-forward layer so many of those: what lies between two operations then stays in cache, and no memory is mapped
# anew.
BLOCK_TOKENS = 1024
FEED_FORWARD_TOKENS = 256


def _real_fft2(x_BTD: Tensor, norm: str) -> Tensor:
    wide_BTD = x_BTD if x_BTD.dtype is torch.float64 else x_BTD.float()
    out_BTD = torch.empty_like(wide_BTD, memory_format=torch.contiguous_format)
    columns = x_BTD.shape[-1] // 2 + 1
    rest = x_BTD.shape[-1] - columns
    at_once = max(1, CHUNK_NUMBERS // x_BTD[0].numel())
    for x, out in zip(wide_BTD.split(at_once), out_BTD.split(at_once), strict=True):
        half_BTK = out[..., :columns]
        half_BTK.copy_(torch.fft.rfft2(x, norm=norm).real)
        # Column d of the rest is column D - d read backwards in time, where row 0 stays row 0.
        out[:, 0, columns:] = half_BTK[:, 0, 1 : rest + 1].flip(-1)
        out[:, 1:, columns:] = half_BTK[:, 1:, 1 : rest + 1].flip(-2, -1)
    return out_BTD.to(x_BTD.dtype)


class _RealFFT2(torch.autograd.Function):
    """The transform with itself as its gradient; nothing is saved."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, norm: str) -> Tensor:
        ctx.norm = norm
        return _real_fft2(x_BTD, norm)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _RealFFT2.apply(grads[0], ctx.norm), None


def real_fft2(x_BTD: Tensor, norm: str = "backward") -> Tensor:
    """``torch.fft.fft2(x_BTD, norm=norm).real``, contiguous and in x's dtype; half precision is transformed in float32.

    ``norm="ortho"`` divides by ``sqrt(T D)``.
    """
    out_BTD: Tensor = _RealFFT2.apply(x_BTD, norm)
    return out_BTD


class FourierMixing(nn.Module):
    """``Re(F_T x F_D)``: every token reaches every other, by a fixed transform without parameters."""

    def __init__(self, norm: str = "backward") -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x_BTD: Tensor) -> Tensor:
        return real_fft2(x_BTD, self.norm)


class SelfAttention(nn.Module):
    """Multi-head self-attention, bidirectional. ``F.scaled_dot_product_attention`` is torch's best call for it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BHTD, k_BHTD, v_BHTD = self.qkv(x_BTD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD)
        return self.out(mixed_BHTD.transpose(1, 2).flatten(-2))


class LinearMixing(nn.Module):
    """Two learned matrices, over the width and over the length: what Fourier mixing is, were it learned."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.over_width = nn.Linear(width, width, bias=False)
        self.over_length_TT = nn.Parameter(torch.randn(length, length) / length**0.5)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.matmul(self.over_length_TT, self.over_width(x_BTD))


class FeedForward(nn.Module):
    """``down(gelu(up(x)))`` with the exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x_BTD.is_cuda:
            return self.down(F.gelu(self.up(x_BTD)))
        out_BTD = torch.empty_like(x_BTD, memory_format=torch.contiguous_format)
        chunks = (tensor.flatten(0, 1).split(FEED_FORWARD_TOKENS) for tensor in (x_BTD, out_BTD))
        for x_ND, out_ND in zip(*chunks, strict=True):
            hidden_NF = self.up(x_ND)
            torch.ops.aten.gelu_(hidden_NF)
            torch.addmm(self.down.bias, hidden_NF, self.down.weight.t(), out=out_ND)
        return out_BTD


class Block(nn.Module):
    """Pre-norm residual block; ``mixing`` None leaves the first half out."""

    def __init__(self, width: int, hidden: int, mixing: nn.Module | None) -> None:
        super().__init__()
        self.mixing = mixing
        if mixing is not None:
            self.mixing_norm = nn.LayerNorm(width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x_BTD.is_cuda:
            return self._residuals(x_BTD)
        samples = max(1, BLOCK_TOKENS // x_BTD.shape[1])
        return torch.cat([self._residuals(part_BTD) for part_BTD in x_BTD.split(samples)])

    def _residuals(self, x_BTD: Tensor) -> Tensor:
        if self.mixing is not None:
            x_BTD = x_BTD + self.mixing(self.mixing_norm(x_BTD))
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))
