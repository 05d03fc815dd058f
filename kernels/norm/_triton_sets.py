"""Triton kernels of ``triton_fused`` for a set of some 100 KiB at most: instance and group of contiguous images.

One program owns a set, ``share`` planes that lie side by side. It walks over it twice. What it reads the second time it
has read a moment before, so that comes from a cache: memory sees x once in the forward, x and dy once in the backward.
Tiles are [planes, positions]; planes and the arrays per plane are those of ``_triton_images``, with one chunk.

Source: equations (19), (22), (61) and (62) of docs/derivations/norm.md
"""

from __future__ import annotations

import triton
import triton.language as tl

# Triton takes a parameter's type from its argument; only constants are annotated.
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def _tile(set_, start, position, share, area, BLOCK_R: tl.constexpr):
    """A block of planes of a set, by number within it, and where its tile lies; the mask of what exists."""
    member = start + tl.arange(0, BLOCK_R)
    exists = (member[:, None] < share) & (position[None, :] < area)
    return member, (set_.to(tl.int64) * share + member)[:, None] * area + position[None, :], exists


@triton.jit
def set_forward(
    x_base, y_base, weight_base, bias_base, mean_base, rstd_base, image_sets, share, area, eps,
    BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y, mean and rstd of one set. Grid (sets)."""
    set_ = tl.program_id(0)
    count, mean, squares = 0.0, 0.0, 0.0
    for start in range(0, share, BLOCK_R):
        for first in range(0, area, BLOCK_P):
            _, at, exists = _tile(set_, start, first + tl.arange(0, BLOCK_P), share, area, BLOCK_R)
            x = tl.load(x_base + at, mask=exists, other=0.0).to(tl.float32)
            added = min(BLOCK_R, share - start) * min(BLOCK_P, area - first) * 1.0
            tile_mean = tl.sum(tl.sum(x, 1), 0) / added
            x = tl.where(exists, x - tile_mean, 0.0)
            delta = tile_mean - mean
            total = count + added
            mean += delta * (added / total)
            squares += tl.sum(tl.sum(x * x, 1), 0) + delta * delta * (count * (added / total))
            count = total
    rstd = tl.rsqrt(squares / count + eps)
    tl.store(mean_base + set_, mean)
    tl.store(rstd_base + set_, rstd)
    channel = set_ % image_sets * share
    for start in range(0, share, BLOCK_R):
        for first in range(0, area, BLOCK_P):
            member, at, exists = _tile(set_, start, first + tl.arange(0, BLOCK_P), share, area, BLOCK_R)
            x = tl.load(x_base + at, mask=exists, other=0.0).to(tl.float32)
            weight = tl.load(weight_base + channel + member, mask=member < share, other=0.0).to(tl.float32)
            bias = tl.load(bias_base + channel + member, mask=member < share, other=0.0).to(tl.float32)
            y = (x - mean) * (rstd * weight)[:, None] + bias[:, None]
            tl.store(y_base + at, y.to(y_base.dtype.element_ty), mask=exists)


@triton.jit
def set_backward(
    x_base, dy_base, dx_base, weight_base, mean_base, rstd_base, dweight_parts_base, dbias_parts_base,
    image_sets, share, area, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dx of one set, and sums of dy * xhat and dy over each of its planes. Grid (sets)."""
    set_ = tl.program_id(0)
    mean = tl.load(mean_base + set_)
    rstd = tl.load(rstd_base + set_)
    channel = set_ % image_sets * share
    g_sum, q_sum = 0.0, 0.0
    for start in range(0, share, BLOCK_R):
        # Summed lane by lane, and over lanes once a block of planes.
        dy_sums = tl.zeros([BLOCK_R, BLOCK_P], tl.float32)
        q_sums = tl.zeros([BLOCK_R, BLOCK_P], tl.float32)
        for first in range(0, area, BLOCK_P):
            _, at, exists = _tile(set_, start, first + tl.arange(0, BLOCK_P), share, area, BLOCK_R)
            x = tl.load(x_base + at, mask=exists, other=0.0).to(tl.float32)
            dy = tl.load(dy_base + at, mask=exists, other=0.0).to(tl.float32)
            dy_sums += dy
            q_sums += dy * (x - mean) * rstd
        a = tl.sum(dy_sums, 1)
        q = tl.sum(q_sums, 1)
        member = start + tl.arange(0, BLOCK_R)
        inside = member < share
        weight = tl.load(weight_base + channel + member, mask=inside, other=0.0).to(tl.float32)
        tl.store(dbias_parts_base + set_ * share + member, a, mask=inside)
        tl.store(dweight_parts_base + set_ * share + member, q, mask=inside)
        g_sum += tl.sum(a * weight, 0)
        q_sum += tl.sum(q * weight, 0)
    count = share * area
    for start in range(0, share, BLOCK_R):
        for first in range(0, area, BLOCK_P):
            member, at, exists = _tile(set_, start, first + tl.arange(0, BLOCK_P), share, area, BLOCK_R)
            xhat = (tl.load(x_base + at, mask=exists, other=0.0).to(tl.float32) - mean) * rstd
            dy = tl.load(dy_base + at, mask=exists, other=0.0).to(tl.float32)
            weight = tl.load(weight_base + channel + member, mask=member < share, other=0.0).to(tl.float32)
            dx = (dy * weight[:, None] - g_sum / count - xhat * (q_sum / count)) * rstd
            tl.store(dx_base + at, dx.to(dx_base.dtype.element_ty), mask=exists)
