"""Quantisers that learn their step: forward and gradients, one pass over memory each on a CPU.

``y = clamp(round((x - offset) / step), low, high) * step + offset``. Rounding has no useful derivative; its gradient is
taken to be one inside the levels and none outside, and from that follow those of the step, ``level - x / step`` inside
and ``low`` or ``high`` outside, and of the offset, none inside and one outside. Weights have a step for each row, or
for each group of a row, and no offset; activations have one of each for the tensor: after a GELU most values are small
and none is below -0.17, after a softmax none is below 0, and where to clip is learned.

What is trained is the logarithm of a step, and an offset in steps: a step stays positive, and one learning rate suits
steps of any size. The mathematics: docs/derivations/quantization.md

Letters: N outputs, K inputs, R rows, C columns.

Source: Esser et al. 2020, arXiv:1902.08153 (LSQ); Bhalgat et al. 2020, arXiv:2004.09576 (LSQ+); Jain et al. 2020,
arXiv:1903.08066 (thresholds as logarithms)
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archbench.hardware import native
from archbench.models.vit_int4._plan import Ranges
from archbench.models.vit_int4._ranges import activation_range, weight_steps
from archbench.track import Unavailable

SOURCES = Path(__file__).parent / "_cpu"


@cache
def library() -> ctypes.CDLL | None:
    """The two passes in C++; None where there is no compiler, and torch does them in several."""
    try:
        found = native.load(SOURCES)
    except Unavailable:
        return None
    address: Any = ctypes.c_void_p
    number, real = ctypes.c_int64, ctypes.c_float
    shape: list[Any] = [number, number, address, number, real, real, real, ctypes.c_int]
    found.archbench_quantise.argtypes, found.archbench_quantise.restype = [address] * 2 + shape, None
    found.archbench_quantise_backward.argtypes = [address] * 5 + shape
    found.archbench_quantise_backward.restype = None
    levels: list[Any] = [real, real, real, address, ctypes.c_int]
    found.archbench_look_up.argtypes, found.archbench_look_up.restype = [address, address, number, *levels], None
    found.archbench_look_up_backward.argtypes = [address] * 5 + [number, number, *levels]
    found.archbench_look_up_backward.restype = None
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


class LookedUp(torch.autograd.Function):
    """``apply(x, step, offset, values, slopes, scale) -> y``: what a function makes of rounded numbers.

    There are as many of these as levels, so the function was computed once for each of them: ``values`` (levels,), its
    derivative ``slopes`` (levels,). In C++ only. ``scale`` multiplies the gradients of step () and offset ().
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, offset: Tensor, values: Tensor, slopes: Tensor, scale: float
    ) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, slopes)
        ctx.range = float(step), float(offset), len(values) - 1.0
        ctx.scale = scale
        y = torch.empty_like(x)
        threads = torch.get_num_threads()
        _library().archbench_look_up(x.data_ptr(), y.data_ptr(), x.numel(), *ctx.range, values.data_ptr(), threads)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, slopes = ctx.saved_tensors
        dy = dy.contiguous()
        dx = torch.empty_like(x)
        rows = x.numel() // x.shape[-1]
        dstep, doffset = x.new_empty(2, rows)
        addresses = (x.data_ptr(), dy.data_ptr(), dx.data_ptr(), dstep.data_ptr(), doffset.data_ptr())
        _library().archbench_look_up_backward(
            *addresses, rows, x.shape[-1], *ctx.range, slopes.data_ptr(), torch.get_num_threads()
        )
        return dx, dstep.sum() * ctx.scale, doffset.sum() * ctx.scale, None, None, None


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
    """Of a matrix (N, K): symmetric, ``bits`` bits, a step for each ``group`` columns of a row; 0: for each row.

    Raises ValueError where groups do not divide the columns.
    """

    def __init__(self, weight: Tensor, bits: int, group: int = 0, ranges: Ranges = "least_squares") -> None:
        super().__init__()
        self.bits, self.columns = bits, group or weight.shape[1]
        if weight.shape[1] % self.columns:
            raise ValueError(f"groups of {group} do not divide {weight.shape[1]} inputs")
        self.low, self.high = -float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)
        self.scale = (self.columns * self.high) ** -0.5
        steps = weight_steps(weight.detach().reshape(-1, self.columns), self.low, self.high, ranges)
        self.log_step = nn.Parameter(steps.flatten().log())  # one-dimensional: it does not decay

    @property
    def step(self) -> Tensor:
        """(N, K / group), as numbers."""
        return self.log_step.detach().exp().view(-1, 1)

    def forward(self, weight: Tensor) -> Tensor:
        rows = weight.reshape(-1, self.columns)
        y: Tensor = FakeQuantise.apply(rows, self.log_step.exp()[:, None], None, self.low, self.high, self.scale)
        return y.view_as(weight)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """The levels (N, K) int8."""
        rows = weight.reshape(-1, self.columns) / self.step
        return rows.clamp(self.low, self.high).round().to(torch.int8).view_as(weight)


class ActivationQuantiser(nn.Module):
    """Of activations: ``bits`` bits, one step, the lowest level at ``zero`` steps below 0.

    ``observing`` says what to do with the values it sees (``_layers.calibrate``): "set" its range from them, "widen" it
    where its ends are extremes, or nothing.
    """

    def __init__(self, bits: int, ranges: Ranges = "least_squares") -> None:
        super().__init__()
        self.bits, self.high, self.ranges = bits, float(2**bits - 1), ranges
        self.log_step = nn.Parameter(torch.zeros(()))
        self.zero = nn.Parameter(torch.zeros(()))
        self.observing = ""
        self.seen = torch.zeros(2)  # least and largest value

    @property
    def step(self) -> Tensor:
        return self.log_step.exp()

    @property
    def offset(self) -> Tensor:
        """The number that level 0 stands for."""
        return -self.zero * self.step

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """x rounded; ``gelu``: and GELU of that."""
        if self.observing:
            self.observe(x)
        scale = (x.shape[-1] * self.high) ** -0.5
        step, offset = self.step, self.offset
        y: Tensor
        if not gelu or not _native(x):
            y = FakeQuantise.apply(x, step, offset, 0.0, self.high, scale)
            return F.gelu(y) if gelu else y
        with torch.no_grad():
            levels = torch.arange(self.high + 1) * step + offset
            values, slopes = F.gelu(levels), torch.ops.aten.gelu_backward(torch.ones_like(levels), levels)
        y = LookedUp.apply(x, step, offset, values, slopes, scale)
        return y

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        values = x.flatten()
        if self.ranges != "least_squares":
            ends = torch.stack(values.aminmax())
            if self.observing == "widen":
                ends = torch.stack((torch.minimum(ends[0], self.seen[0]), torch.maximum(ends[1], self.seen[1])))
            self.seen = values = ends
        elif self.observing == "widen":
            return
        step, offset = activation_range(values, self.high, self.ranges)
        self.log_step.copy_(step.log())
        self.zero.copy_(-offset / step)
