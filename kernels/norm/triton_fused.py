"""Fused Triton kernels, written for this benchmark: every kind of the track, forward and backward.

Where a set fits on the chip memory is read once: a row of layer or rms lies in registers, a set of instance or group
norm in a cache. The sets of BatchNorm do not fit; they are cut into chunks whose moments are merged by Chan's formula,
and x is read once more for y. The backward is cut the same way, and one reduction serves the input, weight and bias.
Variances are formed around a mean, sums in float32, and nothing is added up atomically. Images may have their channels
last. Not measured on a GPU: block sizes were chosen to compile without spills, not tuned.

Source: docs/derivations/norm.md; Chan, Golub & LeVeque 1983, The American Statistician 37
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from archbench.kernels.norm import EPS, MOMENTUM, NormCase
from archbench.kernels.norm import _triton_images as images
from archbench.kernels.norm import _triton_rows as rows
from archbench.kernels.norm import _triton_sets as sets
from archbench.track import Call, Contender, Unavailable

MAX_WIDTH = 8192  # of a row: 16 numbers of x, of dy and of each gradient in a thread's registers
SET_BYTES = 128 * 1024  # of a set that one program owns: what runs at once fits into the cache of an A100 or H100
FEWEST_SETS = 64  # below that most of the chip would stay idle with a program for a set
SMALL = {"BLOCK_R": 32, "BLOCK_P": 32, "num_warps": 4}  # tiles of the kernels that merge


@dataclass(frozen=True)
class Tiles:
    """How x is cut. A tile is BLOCK_R rows or planes by BLOCK_P columns or positions."""

    block_r: int
    block_p: int
    num_warps: int
    chunk: int = 0  # positions of a plane for one program, at most BLOCK_P

    @property
    def options(self) -> dict[str, int]:
        return {"BLOCK_R": self.block_r, "BLOCK_P": self.block_p, "num_warps": self.num_warps}


def row_tiles(width: int) -> Tiles:
    block_p = triton.next_power_of_2(width)
    return Tiles(max(1, 2048 // block_p), block_p, max(4, block_p // 512))


def image_tiles(channels: int, area: int, last: bool) -> Tiles:
    """Tiles of 4096 elements; a plane is cut into chunks of equal size, so that few lanes stay empty."""
    if last:
        block_r = min(64, triton.next_power_of_2(channels))
        block_p = min(4096 // block_r, max(16, triton.next_power_of_2(area)))
        return Tiles(block_r, block_p, 8, block_p)
    chunk = triton.cdiv(triton.cdiv(area, triton.cdiv(area, 4096)), 16) * 16
    block_p = triton.next_power_of_2(chunk)
    return Tiles(4096 // block_p, block_p, 8, chunk)


def set_tiles(share: int, area: int) -> Tiles:
    block_p = min(1024, triton.next_power_of_2(area))
    return Tiles(min(triton.next_power_of_2(share), 2048 // block_p), block_p, 4)


@dataclass(frozen=True)
class Images:
    """One image tensor and its sets, as the kernels of ``_triton_images`` and ``_triton_sets`` see them."""

    batch: bool  # a set spans all images
    planes: int
    channels: int
    area: int
    image_sets: int
    share: int  # channels of a set
    last: bool
    element_bytes: int

    @property
    def sets(self) -> int:
        return self.image_sets if self.batch else self.planes // self.share

    @property
    def owned(self) -> bool:
        """Whether one program owns a set."""
        fits = self.share * self.area * self.element_bytes <= SET_BYTES
        return not self.batch and not self.last and fits and self.sets >= FEWEST_SETS

    @property
    def tiles(self) -> Tiles:
        return image_tiles(self.channels, self.area, self.last)

    @property
    def chunks(self) -> int:
        """Of one plane."""
        return triton.cdiv(self.area, self.tiles.chunk)

    @property
    def grid(self) -> tuple[int, int]:
        if self.last:  # a block of planes stays in one image
            return self.planes // self.channels * triton.cdiv(self.channels, self.tiles.block_r), self.chunks
        return triton.cdiv(self.planes, self.tiles.block_r), self.chunks

    @property
    def merged(self) -> tuple[int, int, int, int, int]:
        """Sets, sets of an image, share, channels, chunks of an image: the batch is one image to a batch norm."""
        chunks = self.chunks * (self.planes // self.channels if self.batch else 1)
        return self.sets, self.image_sets, self.share, self.channels, chunks

    @property
    def looked_up(self) -> tuple[int, int]:
        return (0 if self.batch else self.image_sets), self.share


def dense(x: Tensor) -> Tensor:
    """x where its memory is contiguous or channels last, else a contiguous copy."""
    return x if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def seen(x: Tensor, kind: str, groups: int) -> Images:
    batch, channels, height, width = x.shape
    image_sets = groups if kind == "group" else channels
    of_batch = kind in ("batch_train", "batch_eval")
    return Images(
        of_batch, batch * channels, channels, height * width, image_sets, channels // image_sets,
        not x.is_contiguous(), x.element_size(),
    )  # fmt: skip


def _programs(device: torch.device, num_warps: int) -> int:
    """As many as run at once, about: each leaves a share of the gradients of the weights."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    return int(processors) * max(1, 16 // num_warps)


Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("archbench::triton_norm_forward", mutates_args=())
def norm_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    kind: str,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, mean and rstd of the sets (float32), new running mean and variance; empty where the kind has none."""
    x = dense(x)
    y, mean, rstd, new_mean, new_var = _outputs(x, weight, kind, groups)
    if x.dim() == 3:
        width, count = x.shape[2], x.shape[0] * x.shape[1]
        tiles = row_tiles(width)
        rows.row_forward[(triton.cdiv(count, tiles.block_r),)](
            x, y, weight, bias, mean, rstd, count, width, EPS, CENTRED=kind == "layer", **tiles.options
        )
        return y, mean, rstd, new_mean, new_var
    of = seen(x, kind, groups)
    if of.owned:
        sets.set_forward[(of.sets,)](
            x, y, weight, bias, mean, rstd, of.image_sets, of.share, of.area, EPS,
            **set_tiles(of.share, of.area).options,
        )  # fmt: skip
        return y, mean, rstd, new_mean, new_var
    tiles, sizes = of.tiles, (of.planes, of.channels, of.area, of.tiles.chunk)
    given = kind == "batch_eval"
    if not given:
        parts = mean.new_empty(2, of.planes * of.chunks)
        images.moments[of.grid](x, *parts, *sizes, of.chunks, LAST=of.last, **tiles.options)
        images.merge_moments[(triton.cdiv(of.sets, SMALL["BLOCK_P"]),)](
            *parts, mean, rstd, running_mean, running_var, new_mean, new_var, *of.merged,
            of.area, tiles.chunk, of.chunks, EPS, MOMENTUM, RUNNING=of.batch, **SMALL,
        )  # fmt: skip
    statistics = (running_mean, running_var) if given else (mean, rstd)
    images.normalize[of.grid](
        x, y, *statistics, weight, bias, *sizes, *of.looked_up, EPS, GIVEN=given, LAST=of.last, **tiles.options
    )
    return y, mean, rstd, new_mean, new_var


@torch.library.custom_op("archbench::triton_norm_backward", mutates_args=())
def norm_backward(
    x: Tensor, weight: Tensor, mean: Tensor, spread: Tensor, dy: Tensor, kind: str, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight, dbias (empty for rms). ``spread`` is rstd, for batch_eval the running variance."""
    x = dense(x)
    dx, dweight, dbias = _gradients_like(x, weight, kind)
    centred = {"CENTRED": kind != "rms"}
    if x.dim() == 3:
        dy = dy.contiguous()
        width, count = x.shape[2], x.shape[0] * x.shape[1]
        tiles = row_tiles(width)
        shares = min(triton.cdiv(count, tiles.block_r), _programs(x.device, tiles.num_warps))
        parts = torch.empty(2, shares, width, device=x.device)
        rows.row_backward[(shares,)](x, dy, dx, weight, mean, spread, *parts, count, width, **centred, **tiles.options)
        _sum_up(parts, dweight, dbias, **centred)
        return dx, dweight, dbias
    of = seen(x, kind, groups)
    dy = dy.contiguous(memory_format=torch.channels_last if of.last else torch.contiguous_format)
    if of.owned:
        parts = torch.empty(2, of.planes // of.channels, of.channels, device=x.device)
        sets.set_backward[(of.sets,)](
            x, dy, dx, weight, mean, spread, *parts, of.image_sets, of.share, of.area,
            **set_tiles(of.share, of.area).options,
        )  # fmt: skip
        _sum_up(parts, dweight, dbias, **centred)
        return dx, dweight, dbias
    tiles, sizes = of.tiles, (of.planes, of.channels, of.area, of.tiles.chunk)
    form = {"GIVEN": kind == "batch_eval", "LAST": of.last, **tiles.options}
    parts = torch.empty(2, of.planes // of.channels * of.chunks, of.channels, device=x.device)
    images.gradient_sums[of.grid](x, dy, mean, spread, *parts, *sizes, of.chunks, *of.looked_up, EPS, **form)
    _sum_up(parts, dweight, dbias, **centred)
    means = torch.empty(2, of.sets, device=x.device)
    if not form["GIVEN"]:
        images.set_means[(triton.cdiv(of.sets, SMALL["BLOCK_P"]),)](
            *parts, weight, *means, *of.merged, x.numel() // of.sets, **SMALL
        )
    images.input_gradient[of.grid](x, dy, dx, mean, spread, weight, *means, *sizes, *of.looked_up, EPS, **form)
    return dx, dweight, dbias


def _sum_up(parts: Tensor, dweight: Tensor, dbias: Tensor, **centred: bool) -> None:
    _, shares, channels = parts.shape
    rows.channel_sums[(triton.cdiv(channels, SMALL["BLOCK_P"]),)](
        *parts, dweight, dbias, shares, channels, **centred, **SMALL
    )


def _outputs(x: Tensor, weight: Tensor, kind: str, groups: int) -> Forward:
    count = 0 if kind == "batch_eval" else x.shape[0] * x.shape[1] if x.dim() == 3 else seen(x, kind, groups).sets
    mean, rstd = (x.new_empty(n, dtype=torch.float32) for n in (0 if kind == "rms" else count, count))
    new = [weight.new_empty(count if kind == "batch_train" else 0) for _ in range(2)]
    return torch.empty_like(x), mean, rstd, new[0], new[1]


def _gradients_like(x: Tensor, weight: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), weight.new_empty(0 if kind == "rms" else len(weight))


@norm_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    kind: str,
    groups: int,
) -> Forward:
    return _outputs(dense(x), weight, kind, groups)


@norm_backward.register_fake
def _(
    x: Tensor, weight: Tensor, mean: Tensor, spread: Tensor, dy: Tensor, kind: str, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients_like(dense(x), weight, kind)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Forward) -> None:
    x, weight, _, running_mean, running_var, ctx.kind, ctx.groups = inputs
    ctx.mark_non_differentiable(*output[1:])
    statistics = (running_mean, running_var) if ctx.kind == "batch_eval" else output[1:3]
    ctx.save_for_backward(x, weight, *statistics)


def _gradients(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias = norm_backward(*ctx.saved_tensors, dy, ctx.kind, ctx.groups)
    return dx, dweight, (None if ctx.kind == "rms" else dbias), None, None, None, None


norm_forward.register_autograd(_gradients, setup_context=_keep)


def _build(case: NormCase) -> Call:
    if case.dtype == "fp64":
        raise Unavailable("its kernels have no fp64")
    if len(case.shape) == 3 and case.channels > MAX_WIDTH:
        raise Unavailable(f"a row lies in the registers of one program: at most {MAX_WIDTH} features")
    groups = case.groups or 1

    def normalized(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
    ) -> Any:
        y, _, _, new_mean, new_var = norm_forward(x, weight, bias, running_mean, running_var, case.kind, groups)
        return (y, new_mean, new_var) if case.kind == "batch_train" else y

    return normalized


CONTENDER: Contender[NormCase] = Contender(build=_build, device="cuda")
