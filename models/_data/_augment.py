"""What training does to an image: mirrored, shifted, cropped; and the middle that evaluation takes.

Every function gets its draws as an argument, so that an augmentation is a function of them and of the image alone.

B batch, C channels, H height, W width.

Source: Szegedy et al., Going Deeper with Convolutions, 2014 (random resized crop); https://arxiv.org/abs/1409.4842
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

CROP_TRIES = 10  # as torchvision does, before it takes the middle
MIDDLE = 224 / 256  # of the shorter side, in evaluation


@dataclass(frozen=True)
class Augment:
    """What training does to an image. The defaults do nothing to a set whose images have one size."""

    flip: bool = False  # left and right, half of the time
    padding: int = 0  # zeros around an image before a crop of its old size; without `size`
    area: tuple[float, float] = (0.08, 1.0)  # of the image that a crop takes; with `size`
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width to height of a crop; with `size`

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding={self.padding}: expected 0 or more pixels")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area={self.area}: expected two shares above 0 and up to 1, the smaller first")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio={self.ratio}: expected two ratios above 0, the smaller first")


def shifted_and_flipped(
    pixels_BCHW: NDArray[np.uint8], draws: NDArray[np.float64], augment: Augment
) -> NDArray[np.uint8]:
    """A crop of the padded image, and the mirror image for half of them."""
    height, width = pixels_BCHW.shape[2:]
    if augment.padding:
        room = augment.padding
        padded = np.pad(pixels_BCHW, ((0, 0), (0, 0), (room, room), (room, room)))
        down, right = (draws[:, :2].T * (2 * room + 1)).astype(np.int64)
        windows = sliding_window_view(padded, (height, width), axis=(2, 3))
        pixels_BCHW = windows[np.arange(len(padded)), :, down, right]
    if augment.flip:
        mirrored = draws[:, 2] < 0.5
        pixels_BCHW[mirrored] = pixels_BCHW[mirrored][..., ::-1]
    return pixels_BCHW


def random_box(width: int, height: int, draws: NDArray[np.float64], augment: Augment) -> tuple[int, int, int, int]:
    """A crop of random area and shape at a random place: left, top, right, bottom."""
    low, high = (math.log(value) for value in augment.ratio)
    for area, ratio, x, y in draws[: 4 * CROP_TRIES].reshape(CROP_TRIES, 4):
        target = width * height * (augment.area[0] + area * (augment.area[1] - augment.area[0]))
        shape = math.exp(low + ratio * (high - low))
        wide, tall = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(x * (width - wide + 1)), int(y * (height - tall + 1))
            return left, top, left + wide, top + tall
    # The image is far from square: the largest crop of an allowed shape, from the middle.
    wide = min(width, round(height * augment.ratio[1]))
    tall = min(height, round(width / augment.ratio[0]))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def middle_box(width: int, height: int) -> tuple[float, float, float, float]:
    side = MIDDLE * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
