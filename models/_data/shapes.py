"""A generated stand-in: 10,000 images of eight shapes, for trying things out where no real data is.

A shape of random place, size and rotation lies on a shaded background with noise; colours are random, so that they
tell nothing, and a network has to see the form. It is asked for by name and never replaces a real set. Drawn with
additions, products and comparisons alone, whose rounding is the same on every machine.

N images, H height, W width, C channels.

Source: none; made for this project.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from archbench.models._data import Rows
from archbench.models._data._draws import uniform

NAME = "shapes"
KINDS = ("disc", "ring", "square", "frame", "triangle", "cross", "bar", "half disc")
COUNTS = {"train": 8_000, "test": 2_000}
SIDE = 32
SEED = 20  # any; another one is another data set
NOISE = 48.0  # grey levels from end to end
CHUNK = 500  # images drawn at a time


def open_shapes(split: str) -> Rows:
    """The rows of a split; the kinds alternate."""
    side = "train" if split == "train" else "test"
    count = COUNTS[side]
    pixels_NHWC = np.concatenate(
        [drawn(np.arange(start, start + CHUNK), list(COUNTS).index(side)) for start in range(0, count, CHUNK)]
    )
    return Rows(
        image=lambda row: pixels_NHWC[row],
        place=lambda row: f"row {row}",
        labels=np.arange(count) % len(KINDS),
        classes=len(KINDS),
        where="generated",
        told=f"generated: {', '.join(KINDS)}",
    )


def drawn(rows: NDArray[np.int64], part: int) -> NDArray[np.uint8]:
    """Images of some rows as uint8 [N, H, W, C]."""
    own = uniform(SEED, 2 * part, rows, 14)[:, :, None, None]
    noise = uniform(SEED, 2 * part + 1, rows, SIDE * SIDE).reshape(-1, SIDE, SIDE, 1)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64)
    radius = 6 + 5 * own[:, 0]
    left, top = (radius + own[:, axis] * (SIDE - 1 - 2 * radius) for axis in (1, 2))
    # A rotation without sine and cosine, whose last bit differs between machines.
    slope = 2 * own[:, 3] - 1
    cosine, sine = (1 - slope * slope) / (1 + slope * slope), 2 * slope / (1 + slope * slope)
    u = ((x - left) * cosine + (y - top) * sine) / radius
    v = ((y - top) * cosine - (x - left) * sine) / radius
    inside = np.choose(rows[:, None, None] % len(KINDS), masks(u, v))[..., None]
    back, front, shade = (own[:, start : start + 3, 0, 0][:, None, None, :] for start in (4, 7, 10))
    base = 40 + 100 * back + 2 * (shade - 0.5) * (x[..., None] - SIDE / 2)
    # Lighter or darker than its background by at least 30 of 255, in every channel.
    contrast = (30 + 40 * front) * np.where(own[:, 13, :, :, None] < 0.5, -1.0, 1.0)
    return np.clip(base + inside * contrast + NOISE * (noise - 0.5), 0, 255).astype(np.uint8)


def masks(u: NDArray[np.float64], v: NDArray[np.float64]) -> list[NDArray[np.bool_]]:
    """Which pixels lie inside each kind of shape; u and v are its own axes, its radius is 1."""
    distance = u * u + v * v
    width, height = np.abs(u), np.abs(v)
    square = np.maximum(width, height)
    return [
        distance <= 1,
        (distance <= 1) & (distance >= 0.3),
        square <= 0.85,
        (square <= 0.85) & (square >= 0.5),
        (v >= -0.6) & (v + 1.75 * width <= 1),
        (np.minimum(width, height) <= 0.25) & (square <= 1),
        (width <= 0.3) & (height <= 1),
        (distance <= 1) & (v >= 0),
    ]
