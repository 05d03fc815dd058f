"""Triton kernels of ``triton_fused`` for sets that are rows: layer and rms, forward and backward.

Tensors are contiguous [R, D] matrices, a row is a set and lies whole in the registers of one program: x is read once.
Mean and rstd are float32 [R]. Weights vary along a row; a program of the backward walks over many rows, keeps its share
of their gradients on the chip and writes it once, and ``channel_sums`` adds up the shares in a fixed order.

All arithmetic is in float32. Triton's interpreter needs that, too: it computes bfloat16 wrongly.

Source: equations (3), (14), (19) and (20) of docs/derivations/norm.md
"""

from __future__ import annotations

import triton
import triton.language as tl

# Triton takes a parameter's type from its argument; only constants are annotated.
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def row_forward(
    x_base, y_base, weight_base, bias_base, mean_base, rstd_base, rows, width, eps,
    CENTRED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y, and of every row mean (``CENTRED``) and rstd. Grid (blocks of rows). BLOCK_P covers the width."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_P)
    exists = (row[:, None] < rows) & (column[None, :] < width)
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    x = tl.load(x_base + at, mask=exists, other=0.0).to(tl.float32)
    if CENTRED:
        mean = tl.sum(x, 1) / width
        tl.store(mean_base + row, mean, mask=row < rows)
        x = tl.where(exists, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(x * x, 1) / width + eps)
    tl.store(rstd_base + row, rstd, mask=row < rows)
    y = x * rstd[:, None] * tl.load(weight_base + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    if CENTRED:
        y += tl.load(bias_base + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    tl.store(y_base + at, y.to(y_base.dtype.element_ty), mask=exists)


@triton.jit
def row_backward(
    x_base, dy_base, dx_base, weight_base, mean_base, rstd_base, dweight_parts_base, dbias_parts_base, rows, width,
    CENTRED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dx, and this program's share of dweight and dbias, float32 [programs, D]. Grid (programs)."""
    column = tl.arange(0, BLOCK_P)
    inside = column < width
    weight = tl.load(weight_base + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    dweight = tl.zeros([BLOCK_R, BLOCK_P], tl.float32)
    dbias = tl.zeros([BLOCK_R, BLOCK_P], tl.float32)
    for start in range(tl.program_id(0) * BLOCK_R, rows, tl.num_programs(0) * BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        exists = (row[:, None] < rows) & inside[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        xhat = tl.load(x_base + at, mask=exists, other=0.0).to(tl.float32)
        dy = tl.load(dy_base + at, mask=exists, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_base + row, mask=row < rows, other=0.0)[:, None]
        if CENTRED:
            xhat = xhat - tl.load(mean_base + row, mask=row < rows, other=0.0)[:, None]
            dbias += dy
        xhat = xhat * rstd
        dweight += dy * xhat  # beside the row dy is zero, whatever xhat is
        g = dy * weight
        dx = g - xhat * (tl.sum(g * xhat, 1) / width)[:, None]
        if CENTRED:
            dx -= (tl.sum(g, 1) / width)[:, None]
        tl.store(dx_base + at, (dx * rstd).to(dx_base.dtype.element_ty), mask=exists)
    to = tl.program_id(0) * width + column
    tl.store(dweight_parts_base + to, tl.sum(dweight, 0), mask=inside)
    if CENTRED:
        tl.store(dbias_parts_base + to, tl.sum(dbias, 0), mask=inside)


@triton.jit
def channel_sums(
    dweight_parts_base, dbias_parts_base, dweight_base, dbias_base, parts, channels,
    CENTRED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dweight and dbias from float32 shares [parts, C]. Grid (blocks of BLOCK_P channels)."""
    channel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    dweight = tl.zeros([BLOCK_R, BLOCK_P], tl.float32)
    dbias = tl.zeros([BLOCK_R, BLOCK_P], tl.float32)
    for start in range(0, parts, BLOCK_R):
        part = start + tl.arange(0, BLOCK_R)
        exists = (part[:, None] < parts) & (channel[None, :] < channels)
        at = part.to(tl.int64)[:, None] * channels + channel[None, :]
        dweight += tl.load(dweight_parts_base + at, mask=exists, other=0.0)
        if CENTRED:
            dbias += tl.load(dbias_parts_base + at, mask=exists, other=0.0)
    inside = channel < channels
    tl.store(dweight_base + channel, tl.sum(dweight, 0).to(dweight_base.dtype.element_ty), mask=inside)
    if CENTRED:
        tl.store(dbias_base + channel, tl.sum(dbias, 0).to(dbias_base.dtype.element_ty), mask=inside)
