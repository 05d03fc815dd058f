"""Batches as a pure function of the step: ``batches(7)`` is the same whoever asks, whenever, in whatever order.

An epoch's order and every augmentation are hashes of (seed, step, row), so a run resumes at any step without saved
state, and the number of threads changes nothing. Small sets are decoded once and augmented as arrays; with ``size``,
images of any size are decoded, cropped and resized by threads while the step before is computed.

B batch, C channels, H height, W width, T time; N images.

Source: none; what is done to an image is in ``_augment``.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from archbench.models._data import BadData
from archbench.models._data._augment import CROP_TRIES, Augment, middle_box, random_box, shifted_and_flipped
from archbench.models._data._draws import permutation, uniform
from archbench.models._data._images import Images
from archbench.models._data._text import Text

if TYPE_CHECKING:
    from torch import Tensor

# By name and channels: mean and deviation per channel, of pixels from 0 to 1, as publications on these sets use them.
PUBLISHED = {
    ("mnist", 1): ((0.1307,), (0.3081,)),
    ("cifar10", 3): ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ("imagenet-1k", 3): ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
NO_STATISTICS = (0.5, 0.25)  # for every other set: -2 to 2


class Steps:
    """Which rows a step has: every row once per epoch in training, in order in evaluation."""

    def __init__(self, count: int, batch: int, seed: int, train: bool, told: str) -> None:
        if batch < 1 or (train and batch > count):
            raise BadData(f"{told}: a batch of {batch} of {count} rows; expected 1 to {count}")
        self.count, self.batch, self.seed, self.train = count, batch, seed, train
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        """Steps per epoch; training leaves the rest of an epoch out, evaluation has a shorter last batch."""
        return self.count // self.batch if self.train else -(-self.count // self.batch)

    def rows(self, step: int) -> NDArray[np.int64]:
        epoch, turn = divmod(step, len(self))
        if step < 0 or (epoch and not self.train):
            raise ValueError(f"step {step}: expected 0 {'or more' if self.train else f'to {len(self) - 1}'}")
        if not self.train:
            return np.arange(turn * self.batch, min((turn + 1) * self.batch, self.count))
        kept = self._order
        if kept is None or kept[0] != epoch:
            kept = self._order = epoch, permutation(self.seed, epoch, self.count)
        return kept[1][turn * self.batch : (turn + 1) * self.batch]


class Batches:
    """``batches(step)``: images as float32 [B, C, H, W], normalised, and labels as int64 [B].

    Without ``size`` the set is decoded at once, and all its images need one size. With ``size`` images are decoded per
    step by ``workers`` threads: random resized crops in training, the middle in evaluation.
    Raises BadData, ValueError for options.
    """

    def __init__(
        self,
        images: Images,
        batch: int,
        seed: int = 0,
        *,
        train: bool = True,
        augment: Augment | None = None,
        size: int | None = None,
        workers: int | None = None,
    ) -> None:
        for option, value in (("size", size), ("workers", workers)):
            if value is not None and value < 1:
                raise ValueError(f"{option}={value}: expected 1 or more, or None")
        self.images = images
        self.steps = Steps(len(images), batch, seed, train, images.origin.line)
        self.augment = augment or Augment()
        self.size = size
        self._pool: ThreadPoolExecutor | None = None
        if size is None:
            pixels, labels = images.tensors()
            self._pixels, self._labels = pixels.numpy(), labels.numpy()
        else:
            self._pool = ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="decode")
        plain = (NO_STATISTICS[:1] * images.channels, NO_STATISTICS[1:] * images.channels)
        mean, deviation = PUBLISHED.get((images.origin.name, images.channels), plain)
        self._mean = 255 * np.array(mean, dtype=np.float32)[:, None, None]
        self._scale = 1 / (255 * np.array(deviation, dtype=np.float32))[:, None, None]

    def __len__(self) -> int:
        return len(self.steps)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        import torch

        rows = self.steps.rows(step)
        pixels_BCHW, labels_B = self._from_memory(rows, step) if self.size is None else self._from_files(rows, step)
        # numpy, not torch: its elementwise work stays in this thread and takes no cores from the step being computed.
        values_BCHW = np.subtract(pixels_BCHW, self._mean, dtype=np.float32)
        values_BCHW *= self._scale
        return torch.from_numpy(values_BCHW), torch.from_numpy(labels_B)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop the decoding threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _from_memory(self, rows: NDArray[np.int64], step: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        pixels, labels = self._pixels[rows], self._labels[rows]
        if self.steps.train:
            pixels = shifted_and_flipped(pixels, uniform(self.steps.seed, step, rows, 3), self.augment)
        return pixels, labels

    def _from_files(self, rows: NDArray[np.int64], step: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        assert self._pool is not None
        assert self.size is not None
        channels = self.images.channels
        pixels = np.empty((len(rows), channels, self.size, self.size), dtype=np.uint8)
        labels = np.empty(len(rows), dtype=np.int64)
        draws = uniform(self.steps.seed, step, rows, 4 * CROP_TRIES + 1)

        def fill(place: int) -> None:
            use = partial(self._cropped, draws=draws[place], channels=channels)
            pixels[place], labels[place] = self.images.replaced(int(rows[place]), use)

        for _ in self._pool.map(fill, range(len(rows))):
            pass
        return pixels, labels

    def _cropped(self, picture: Any, draws: NDArray[np.float64], channels: int) -> NDArray[np.uint8]:
        """The crop of one Pillow image as uint8 [C, size, size]."""
        from PIL import Image

        assert self.size is not None
        mode = "L" if channels == 1 else "RGB"
        width, height = picture.size
        box = random_box(width, height, draws, self.augment) if self.steps.train else middle_box(width, height)
        # A JPEG decodes at 1/2, 1/4 or 1/8 at a fraction of the cost; never below what the crop is resized to.
        wanted = (
            math.ceil(width * self.size / (box[2] - box[0])),
            math.ceil(height * self.size / (box[3] - box[1])),
        )
        picture.draft(mode, wanted)
        x, y = picture.size[0] / width, picture.size[1] / height
        scaled = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
        resized = picture.convert(mode).resize((self.size, self.size), Image.Resampling.BILINEAR, box=scaled)
        values_HWC = np.asarray(resized).reshape(self.size, self.size, channels)
        if self.steps.train and self.augment.flip and draws[-1] < 0.5:
            values_HWC = values_HWC[:, ::-1]
        return values_HWC.transpose(2, 0, 1)


class Windows:
    """``windows(step)``: tokens and the tokens that follow them, both int64 [B, T].

    Training cuts an epoch's text into windows from a random offset and permutes them; evaluation goes from the start.
    """

    def __init__(self, text: Text, batch: int, length: int, seed: int = 0, *, train: bool = True) -> None:
        tokens = len(text)
        if length < 1 or tokens <= (2 * length if train else length):
            raise BadData(f"{text.origin.line}: too short for windows of {length}")
        self.length = length
        self.steps = Steps((tokens - length if train else tokens - 1) // length, batch, seed, train, text.origin.line)
        self._windows = sliding_window_view(text.tokens().numpy(), length + 1)

    def __len__(self) -> int:
        return len(self.steps)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        import torch

        rows = self.steps.rows(step)
        offset = 0
        if self.steps.train:
            epoch = np.array([step // len(self)])
            offset = int(uniform(self.steps.seed, 0, epoch, 1)[0, 0] * self.length)
        cut_BT = torch.from_numpy(self._windows[offset + rows * self.length])
        return cut_BT[:, :-1].contiguous(), cut_BT[:, 1:].contiguous()


class Prefetch:
    """Makes the next steps in a thread while one is used; ``waited_s`` is how long the consumer stood still for them.

    A context manager: leaving it, by an error too, stops the thread. A batch's error is raised where it is asked for.
    """

    def __init__(self, batches: Callable[[int], tuple[Tensor, ...]], depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"depth={depth}: expected the number of steps made ahead, 1 or more")
        self.waited_s = 0.0
        self._batches = batches
        self._depth = depth
        self._made: dict[int, Future[tuple[Tensor, ...]]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")

    def __call__(self, step: int) -> tuple[Tensor, ...]:
        start = time.perf_counter()
        if step not in self._made:  # the first call, or a jump: nothing made ahead is of use
            self._drop()
        for ahead in range(step, step + 1 + self._depth):
            if ahead not in self._made:
                self._made[ahead] = self._thread.submit(self._batches, ahead)
        try:
            return self._made.pop(step).result()
        finally:
            self.waited_s += time.perf_counter() - start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread; a batch it is making is finished and dropped."""
        self._thread.shutdown(cancel_futures=True)

    def _drop(self) -> None:
        for future in self._made.values():
            future.cancel()
        self._made.clear()
