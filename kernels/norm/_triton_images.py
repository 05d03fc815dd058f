"""Triton kernels of ``triton_fused`` for images of any set: batch, instance, group, contiguous or channels last.

A plane is one channel of one image: plane n * C + c, of P = H * W positions. Planes are cut into J chunks. A first
kernel leaves something small for each chunk, laid out [N, J, C]: moments in the forward, sums of dy and of dy * xhat in
the backward. A second kernel joins what belongs to a set, a third one uses it. Nothing is added up atomically, so
results do not depend on the order of execution.

A set is ``share`` consecutive channels of one image; ``image_sets`` sets make an image. For BatchNorm the whole batch
is one image of N * J chunks: its sets are merged as those of one image, and looked up with ``image_sets`` = 0.

``GIVEN``: statistics were given (evaluation); ``spread`` is then a variance, else an rstd. All arithmetic is in
float32.

Source: Chan, Golub & LeVeque 1983; equations (21), (22), (61), (62) and (64) of docs/derivations/norm.md
"""

from __future__ import annotations

import triton
import triton.language as tl

# Triton takes a parameter's type from its argument; only constants are annotated.
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def _planes(planes, channels, LAST: tl.constexpr, BLOCK_R: tl.constexpr):
    """Image and channel of this program's planes, and which of them exist.

    With channels innermost (``LAST``) a block stays in one image: its channels are neighbours in memory.
    """
    if LAST:
        blocks = tl.cdiv(channels, BLOCK_R)
        image = tl.program_id(0) // blocks
        channel = tl.program_id(0) % blocks * BLOCK_R + tl.arange(0, BLOCK_R)
        inside = channel < channels
    else:
        plane = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
        image = plane // channels
        channel = plane % channels
        inside = plane < planes
    return image, channel, inside


@triton.jit
def _offsets(image, channel, position, channels, area, LAST: tl.constexpr):
    """Where a [planes, positions] tile lies in memory. All tensors may pass 2**31 elements, one image may not."""
    if LAST:
        return image.to(tl.int64) * area * channels + (channel[:, None] + position[None, :] * channels)
    return (image.to(tl.int64) * channels + channel)[:, None] * area + position[None, :]


@triton.jit
def _statistics(mean_base, spread_base, set_, exists, eps, GIVEN: tl.constexpr):
    """Mean and rstd of sets, as columns of a tile."""
    mean = tl.load(mean_base + set_, mask=exists, other=0.0).to(tl.float32)
    spread = tl.load(spread_base + set_, mask=exists, other=1.0).to(tl.float32)
    rstd = tl.rsqrt(spread + eps) if GIVEN else spread
    return mean[:, None], rstd[:, None]


@triton.jit
def moments(
    x_base, mean_parts_base, squares_parts_base, planes, channels, area, chunk, chunks,
    LAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each chunk of each plane. Grid (blocks of planes, chunks)."""
    image, channel, inside = _planes(planes, channels, LAST, BLOCK_R)
    part = tl.program_id(1)
    position = part * chunk + tl.arange(0, BLOCK_P)
    end = min(part * chunk + chunk, area)
    exists = inside[:, None] & (position[None, :] < end)
    x = tl.load(x_base + _offsets(image, channel, position, channels, area, LAST), mask=exists, other=0.0).to(
        tl.float32
    )
    mean = tl.sum(x, 1) / (end - part * chunk)
    x = tl.where(exists, x - mean[:, None], 0.0)
    at = (image * chunks + part) * channels + channel
    tl.store(mean_parts_base + at, mean, mask=inside)
    tl.store(squares_parts_base + at, tl.sum(x * x, 1), mask=inside)


@triton.jit
def _entries(set_, entry, image_sets, share, channels, image_chunks):
    """Where the entries of sets lie in an array [images, chunks of an image, C]: a tile [entries, sets]."""
    first = set_ // image_sets * image_chunks * channels + set_ % image_sets * share
    return first[None, :] + (entry // share * channels + entry % share)[:, None]


@triton.jit
def merge_moments(
    mean_parts_base, squares_parts_base, mean_base, rstd_base, old_mean_base, old_var_base, new_mean_base, new_var_base,
    sets, image_sets, share, channels, image_chunks, area, chunk, chunks, eps, momentum,
    RUNNING: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Mean and rstd of sets, and new running statistics (``RUNNING``). Grid (blocks of BLOCK_P sets)."""
    set_ = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = set_ < sets
    count = 0.0
    mean = tl.zeros([BLOCK_P], tl.float32)
    squares = tl.zeros([BLOCK_P], tl.float32)
    for start in range(0, image_chunks * share, BLOCK_R):
        entry = start + tl.arange(0, BLOCK_R)
        exists = (entry[:, None] < image_chunks * share) & inside[None, :]
        at = _entries(set_, entry, image_sets, share, channels, image_chunks)
        means = tl.load(mean_parts_base + at, mask=exists, other=0.0)
        within = tl.sum(tl.load(squares_parts_base + at, mask=exists, other=0.0), 0)
        size = tl.minimum(chunk, area - entry // share % chunks * chunk)
        size = tl.where(entry < image_chunks * share, size, 0).to(tl.float32)
        added = tl.sum(size, 0)
        tile_mean = tl.sum(means * size[:, None], 0) / added
        off = tl.where(exists, means - tile_mean[None, :], 0.0)
        within += tl.sum(off * off * size[:, None], 0)
        delta = tile_mean - mean
        total = count + added
        mean += delta * (added / total)
        squares += within + delta * delta * (count * (added / total))
        count = total
    variance = squares / count
    tl.store(mean_base + set_, mean, mask=inside)
    tl.store(rstd_base + set_, tl.rsqrt(variance + eps), mask=inside)
    if RUNNING:
        old_mean = tl.load(old_mean_base + set_, mask=inside, other=0.0).to(tl.float32)
        old_var = tl.load(old_var_base + set_, mask=inside, other=0.0).to(tl.float32)
        new_mean = old_mean + momentum * (mean - old_mean)
        new_var = old_var + momentum * (squares / (count - 1.0) - old_var)
        tl.store(new_mean_base + set_, new_mean.to(new_mean_base.dtype.element_ty), mask=inside)
        tl.store(new_var_base + set_, new_var.to(new_var_base.dtype.element_ty), mask=inside)


@triton.jit
def normalize(
    x_base, y_base, mean_base, spread_base, weight_base, bias_base,
    planes, channels, area, chunk, image_sets, share, eps,
    GIVEN: tl.constexpr, LAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y. Grid (blocks of planes, chunks)."""
    image, channel, inside = _planes(planes, channels, LAST, BLOCK_R)
    position = tl.program_id(1) * chunk + tl.arange(0, BLOCK_P)
    end = min(tl.program_id(1) * chunk + chunk, area)
    exists = inside[:, None] & (position[None, :] < end)
    at = _offsets(image, channel, position, channels, area, LAST)
    x = tl.load(x_base + at, mask=exists, other=0.0).to(tl.float32)
    set_ = image * image_sets + channel // share
    mean, rstd = _statistics(mean_base, spread_base, set_, inside, eps, GIVEN)
    weight = tl.load(weight_base + channel, mask=inside, other=0.0).to(tl.float32)[:, None]
    bias = tl.load(bias_base + channel, mask=inside, other=0.0).to(tl.float32)[:, None]
    y = (x - mean) * (rstd * weight) + bias
    tl.store(y_base + at, y.to(y_base.dtype.element_ty), mask=exists)


@triton.jit
def gradient_sums(
    x_base, dy_base, mean_base, spread_base, dweight_parts_base, dbias_parts_base,
    planes, channels, area, chunk, chunks, image_sets, share, eps,
    GIVEN: tl.constexpr, LAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Sums of dy * xhat and of dy over each chunk of each plane. Grid (blocks of planes, chunks)."""
    image, channel, inside = _planes(planes, channels, LAST, BLOCK_R)
    part = tl.program_id(1)
    position = part * chunk + tl.arange(0, BLOCK_P)
    exists = inside[:, None] & (position[None, :] < min(part * chunk + chunk, area))
    at = _offsets(image, channel, position, channels, area, LAST)
    x = tl.load(x_base + at, mask=exists, other=0.0).to(tl.float32)
    dy = tl.load(dy_base + at, mask=exists, other=0.0).to(tl.float32)
    set_ = image * image_sets + channel // share
    mean, rstd = _statistics(mean_base, spread_base, set_, inside, eps, GIVEN)
    to = (image * chunks + part) * channels + channel
    tl.store(dweight_parts_base + to, tl.sum(dy * (x - mean) * rstd, 1), mask=inside)
    tl.store(dbias_parts_base + to, tl.sum(dy, 1), mask=inside)


@triton.jit
def set_means(
    dweight_parts_base, dbias_parts_base, weight_base, g_mean_base, q_mean_base,
    sets, image_sets, share, channels, image_chunks, count, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Means over a set of g = dy * weight and of g * xhat. Grid (blocks of BLOCK_P sets)."""
    set_ = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    g = tl.zeros([BLOCK_P], tl.float32)
    q = tl.zeros([BLOCK_P], tl.float32)
    for start in range(0, image_chunks * share, BLOCK_R):
        entry = start + tl.arange(0, BLOCK_R)
        exists = (entry[:, None] < image_chunks * share) & (set_[None, :] < sets)
        at = _entries(set_, entry, image_sets, share, channels, image_chunks)
        weight = tl.load(weight_base + at % channels, mask=exists, other=0.0).to(tl.float32)
        g += tl.sum(tl.load(dbias_parts_base + at, mask=exists, other=0.0) * weight, 0)
        q += tl.sum(tl.load(dweight_parts_base + at, mask=exists, other=0.0) * weight, 0)
    tl.store(g_mean_base + set_, g / count, mask=set_ < sets)
    tl.store(q_mean_base + set_, q / count, mask=set_ < sets)


@triton.jit
def input_gradient(
    x_base, dy_base, dx_base, mean_base, spread_base, weight_base, g_mean_base, q_mean_base,
    planes, channels, area, chunk, image_sets, share, eps,
    GIVEN: tl.constexpr, LAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dx. Grid (blocks of planes, chunks)."""
    image, channel, inside = _planes(planes, channels, LAST, BLOCK_R)
    position = tl.program_id(1) * chunk + tl.arange(0, BLOCK_P)
    end = min(tl.program_id(1) * chunk + chunk, area)
    exists = inside[:, None] & (position[None, :] < end)
    at = _offsets(image, channel, position, channels, area, LAST)
    set_ = image * image_sets + channel // share
    mean, rstd = _statistics(mean_base, spread_base, set_, inside, eps, GIVEN)
    weight = tl.load(weight_base + channel, mask=inside, other=0.0).to(tl.float32)[:, None]
    dx = tl.load(dy_base + at, mask=exists, other=0.0).to(tl.float32) * weight
    if not GIVEN:
        xhat = (tl.load(x_base + at, mask=exists, other=0.0).to(tl.float32) - mean) * rstd
        g_mean = tl.load(g_mean_base + set_, mask=inside, other=0.0)[:, None]
        dx -= g_mean + xhat * tl.load(q_mean_base + set_, mask=inside, other=0.0)[:, None]
    tl.store(dx_base + at, (dx * rstd).to(dx_base.dtype.element_ty), mask=exists)
