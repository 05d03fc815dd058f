"""Normalization in C++ for CPUs: every element is read once from memory, and large results go around the cache.

A set of elements with common statistics is one task: its second pass, which normalises, finds the set in the cache, and
asks meanwhile for the next one. Results too large for the last-level cache are written around it, which saves reading
them first. Variances are sums of squared differences from a running mean, so a large mean costs no digits.

Source: Chan, Golub & LeVeque 1983, doi:10.1080/00031305.1983.10483115 (merging moments); docs/notes/norm.md
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from archbench.hardware import native
from archbench.hardware.detect import detect
from archbench.kernels.norm import EPS, MOMENTUM, NormCase
from archbench.track import Call, Contender, Unavailable

SOURCES = Path(__file__).parent / "_cpu"
DTYPES = ("fp32", "bf16")
ASSUMED_CACHE = 32 << 20  # where the system reports no size


@dataclass(frozen=True)
class Kernels:
    """The two entry points of a kind, and what of the case they need."""

    library: ctypes.CDLL
    family: str  # "rows", "planes" or "columns"
    stream_from: int  # results of so many bytes, and larger ones, are written around the cache
    groups: int = 0  # of "planes": how many share the channels of an image; 0: a set is a channel of all images
    given: bool = False  # the statistics are
    centred: bool = True  # of "rows": the mean is subtracted

    def sets(self, x: Tensor) -> int:
        """How many means and variances there are."""
        if self.family == "rows":
            return x.numel() // x.shape[-1]
        return x.shape[0] * self.groups if self.groups else x.shape[1]

    def numbers(self, x: Tensor) -> tuple[Any, ...]:
        """The leading arguments of both entry points."""
        if self.family == "rows":
            sizes = [x.numel() // x.shape[-1], x.shape[-1]]
        elif self.family == "planes":
            sizes = [*x.shape[:2], x.shape[2] * x.shape[3], self.groups]
        else:
            sizes = [x.numel() // x.shape[1], x.shape[1]]
        mode = int(self.centred if self.family == "rows" else self.given)
        large = x.numel() * x.element_size() >= self.stream_from
        leading = (int(x.dtype is torch.bfloat16), *map(ctypes.c_int64, sizes), mode, ctypes.c_double(EPS))
        return (*leading, torch.get_num_threads(), int(large))

    def layout(self, x: Tensor) -> Tensor:
        """x as the entry points walk over it."""
        return x.contiguous(memory_format=torch.channels_last) if self.family == "columns" else x.contiguous()

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, statistics: Tensor) -> Tensor:
        """y. Writes the statistics unless they are given."""
        x = self.layout(x)
        y = torch.empty_like(x)
        entry = getattr(self.library, f"archbench_{self.family}_forward")
        entry(*self.numbers(x), *_addresses(x, weight, bias, statistics, y))
        return y

    def backward(self, x: Tensor, dy: Tensor, weight: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dx, dweight, dbias."""
        x, dy = self.layout(x), self.layout(dy)
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        entry = getattr(self.library, f"archbench_{self.family}_backward")
        entry(*self.numbers(x), *_addresses(x, dy, weight, statistics, dx, dweight, dbias))
        return dx, dweight, dbias


def _addresses(*tensors: Tensor | None) -> tuple[ctypes.c_void_p, ...]:
    return tuple(ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors)


class Norm(torch.autograd.Function):
    """``apply(kernels, x, weight, bias, statistics) -> y``; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, x: Tensor, weight: Tensor, bias: Tensor | None, statistics: Tensor
    ) -> Tensor:
        y = kernels.forward(x, weight, bias, statistics)
        ctx.kernels, ctx.biased = kernels, bias is not None
        ctx.save_for_backward(x, weight, statistics)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, statistics = ctx.saved_tensors
        dx, dweight, dbias = ctx.kernels.backward(x, dy, weight, statistics)
        return None, dx, dweight, dbias if ctx.biased else None, None


def _normalise(kernels: Kernels, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _apply(kernels, x, weight, bias, torch.empty(2, kernels.sets(x), dtype=torch.float64))


def _apply(kernels: Kernels, x: Tensor, weight: Tensor, bias: Tensor | None, statistics: Tensor) -> Tensor:
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (x, weight, bias)):
        y: Tensor = Norm.apply(kernels, x, weight, bias, statistics)
        return y
    return kernels.forward(x, weight, bias, statistics)


def _batch_train(
    kernels: Kernels, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = torch.empty(2, x.shape[1], dtype=torch.float64)
    y = _apply(kernels, x, weight, bias, statistics)
    count = x.numel() // x.shape[1]
    mean, var = statistics[0].to(running_mean), (statistics[1] * (count / (count - 1))).to(running_var)
    return y, torch.lerp(running_mean, mean, MOMENTUM), torch.lerp(running_var, var, MOMENTUM)


def _batch_eval(
    kernels: Kernels, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor
) -> Tensor:
    return _apply(kernels, x, weight, bias, torch.stack((running_mean, running_var)).double())


@cache
def stream_from() -> int:
    """A third of the last-level cache: a larger input and its result are no longer there when they are needed again."""
    return (detect().cpu.last_level_bytes or ASSUMED_CACHE) // 3


def kernels_of(library: ctypes.CDLL, case: NormCase, stream_from: int) -> Kernels:
    """Raises Unavailable where a kind has no kernel for the layout."""
    common = (library, "rows" if len(case.shape) == 3 else "columns" if case.channels_last else "planes", stream_from)
    if len(case.shape) == 3:
        return Kernels(*common, centred=case.kind == "layer")
    if case.running:
        return Kernels(*common, given=case.kind == "batch_eval")
    if case.channels_last:
        raise Unavailable(f"{case.kind} has no kernel for channels_last")
    return Kernels(*common, groups=case.groups or case.channels)


def call_of(library: ctypes.CDLL, case: NormCase, stream_from: int) -> Call:
    """The call with the kernels of a library. Raises Unavailable."""
    call: Call = {"batch_train": _batch_train, "batch_eval": _batch_eval}.get(case.kind, _normalise)
    return partial(call, kernels_of(library, case, stream_from))


def build(case: NormCase) -> Call:
    if case.dtype not in DTYPES:
        raise Unavailable(f"fp32 and bf16 only, not {case.dtype}")
    return call_of(native.load(SOURCES), case, stream_from())


CONTENDER: Contender[NormCase] = Contender(build=build, device="cpu")
