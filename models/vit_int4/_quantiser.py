"""A quantiser that learns its step: forward and gradients, one pass over memory each on a CPU.

``y = clamp(round((x - offset) / step), low, high) * step + offset``. Rounding has no useful derivative; its gradient is
taken to be one inside the levels and none outside, and from that follow those of the step, ``level - x / step`` inside
and ``low`` or ``high`` outside, and of the offset, none inside and one outside. Weights have a step for each row and no
offset, activations one of each for the tensor: after a GELU most values are small and none is below -0.17.

Letters: N outputs, K inputs, R rows, C columns.

Source: Esser et al. 2020, arXiv:1902.08153 (LSQ); Bhalgat et al. 2020, arXiv:2004.09576 (LSQ+)
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from archbench.hardware import native
from archbench.track import Unavailable

SOURCES = Path(__file__).parent / "_cpu"


@cache
def library() -> ctypes.CDLL | None:
    """The two passes in C++; None where there is no compiler, and torch does them in several."""
    try:
        found = native.load(SOURCES)
    except Unavailable:
        return None
    address, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    shape = [number, number, address, number, real, real, real, ctypes.c_int]
    found.archbench_quantise.argtypes, found.archbench_quantise.restype = [address] * 2 + shape, None
    found.archbench_quantise_backward.argtypes = [address] * 5 + shape
    found.archbench_quantise_backward.restype = None
    return found


class FakeQuantise(torch.autograd.Function):
    """``apply(x, step, offset, low, high, scale) -> y``; ``step`` (), or (R, 1) of x (R, C); ``offset`` () or None.

    ``scale`` multiplies the gradients of step and offset.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, offset: Tensor | None, low: float, high: float, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, step, offset)
        ctx.levels = low, high, scale
        if _native(x):
            x = x.contiguous()
            y = torch.empty_like(x)
            _library().archbench_quantise(x.data_ptr(), y.data_ptr(), *_sizes(x, step, offset, low, high))
            return y
        shift = 0.0 if offset is None else offset
        return ((x - shift) / step).clamp(low, high).round() * step + shift

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, step, offset = ctx.saved_tensors
        low, high, scale = ctx.levels
        if _native(x):
            x, dy = x.contiguous(), dy.contiguous()
            dx = torch.empty_like(x)
            rows = x.numel() // x.shape[-1]
            dstep, doffset = x.new_empty(2, rows)
            addresses = (x.data_ptr(), dy.data_ptr(), dx.data_ptr(), dstep.data_ptr(), doffset.data_ptr())
            _library().archbench_quantise_backward(*addresses, *_sizes(x, step, offset, low, high))
        else:
            level = (x - (0.0 if offset is None else offset)) / step
            inside = (level >= low) & (level <= high)
            dx = dy * inside
            dstep = (dy * level.clamp(low, high).round() - dx * level).flatten(0, -2).sum(1)
            doffset = (dy - dx).flatten(0, -2).sum(1)
        dstep = dstep.view_as(step) if step.dim() else dstep.sum()
        return dx, dstep * scale, None if offset is None else doffset.sum() * scale, None, None, None


def _native(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype is torch.float32 and library() is not None


def _library() -> ctypes.CDLL:
    found = library()
    assert found is not None
    return found


def _sizes(x: Tensor, step: Tensor, offset: Tensor | None, low: float, high: float) -> tuple[Any, ...]:
    shift = 0.0 if offset is None else float(offset)
    shape = (x.numel() // x.shape[-1], x.shape[-1], step.data_ptr(), int(step.dim() > 0))
    return (*shape, shift, low, high, torch.get_num_threads())


class WeightQuantiser(nn.Module):
    """Of a matrix (N, K): ``bits`` bits, symmetric, a step for each row."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.low, self.high = -float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)
        self.scale = (weight.shape[1] * self.high) ** -0.5
        self.step = nn.Parameter(best_step(weight.detach().flatten(1), self.low, self.high))

    def forward(self, weight: Tensor) -> Tensor:
        y: Tensor = FakeQuantise.apply(weight, self.step, None, self.low, self.high, self.scale)
        return y


class ActivationQuantiser(nn.Module):
    """Of activations: ``bits`` bits from ``offset`` on, one step. Set by the first values it sees, then learned."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.high = float(2**bits - 1)
        self.step = nn.Parameter(torch.zeros(()))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        scale = (x.shape[-1] * self.high) ** -0.5
        y: Tensor = FakeQuantise.apply(x, self.step, self.offset, 0.0, self.high, scale)
        return y

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Start with the range that gives the least squared error on x."""
        step, offset = best_range(x.flatten(), self.high)
        self.step.copy_(step)
        self.offset.copy_(offset)


CLIPPED = torch.linspace(0.3, 1.0, 29)  # shares of the largest magnitude that are tried as the end of the range
SAMPLE = 1 << 17


def best_step(rows: Tensor, low: float, high: float) -> Tensor:
    """(R, 1): of the steps that clip at a share of a row's largest magnitude the one of least squared error."""
    largest = rows.abs().amax(1, keepdim=True).clamp_min(1e-8)
    steps = [largest * share / high for share in CLIPPED.tolist()]
    errors = [((rows / s).clamp(low, high).round() * s - rows).square().sum(1) for s in steps]
    return torch.stack(steps).gather(0, torch.stack(errors).argmin(0).view(1, -1, 1))[0]


def best_range(values: Tensor, high: float) -> tuple[Tensor, Tensor]:
    """Step and offset of least squared error on values (C,), over shares of their range."""
    if len(values) > SAMPLE:
        values = values[:: len(values) // SAMPLE]
    least, largest = values.min(), values.max()
    best: tuple[float, Tensor, Tensor] | None = None
    for below in CLIPPED.tolist():
        for above in CLIPPED.tolist():
            step = ((largest * above - least * below) / high).clamp_min(1e-8)
            offset = least * below
            error = float((((values - offset) / step).clamp(0, high).round() * step + offset - values).square().sum())
            if best is None or error < best[0]:
                best = error, step, offset
    assert best is not None
    return best[1], best[2]
