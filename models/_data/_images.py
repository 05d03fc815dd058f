"""Labelled images: decoded at once into two tensors, or one by one where a set is larger than memory.

Pillow decodes outside of Python's lock, so threads share the work. An image that cannot be decoded is replaced by the
next one that can, always the same, and counted; over ``max_corrupt`` of the set the data is refused. Decoded sets are
kept as one memory-mapped file per fingerprint.

N images, C channels, H height, W width.

Source: https://pillow.readthedocs.io/en/stable/reference/Image.html
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from archbench.models._data import BadData, Origin, Rows
from archbench.models._data._draws import permutation

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 256  # rows a thread decodes at a time
LOOKED_AT = 64  # images whose headers say whether the set is grey
LARGEST_BYTES = 8 << 30  # of a set decoded at once
DECODING = 2  # counts up when the same file gives other pixels, so that kept sets are decoded again


def cannot_decode() -> tuple[type[Exception], ...]:
    """What Pillow raises for broken files."""
    from PIL import Image

    return (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    )


class Images:
    """A split of labelled images; without labels ``classes`` is 0 and a label is the row of ``captions``."""

    def __init__(self, rows: Rows, origin: Origin, max_corrupt: float, cache: Path | None = None) -> None:
        self.origin = origin
        self.classes = rows.classes
        self.captions = rows.captions
        self.labels = rows.labels
        self.max_corrupt = max_corrupt
        self.corrupt: dict[int, str] = {}  # row -> its place and what is wrong; grows while images are decoded
        self._rows = rows
        self._cache = cache
        self._lock = threading.Lock()
        self._tensors: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, count: int) -> Images:
        """``count`` of the images, the same on every machine, as a set of its own. Raises BadData for more than all."""
        if not 0 < count <= len(self):
            raise BadData(f"{self.origin.line}: {count:,} of them were asked for")
        if count == len(self):
            return self
        rows, chosen = self._rows, permutation(0, 0, len(self))[:count].tolist()
        part = replace(
            rows,
            image=lambda row: rows.image(chosen[row]),
            place=lambda row: rows.place(chosen[row]),
            labels=rows.labels[chosen] if rows.classes else np.arange(count),  # of captions: row numbers
            captions=tuple(rows.captions[row] for row in chosen) if rows.captions else (),
            names=[rows.names[row] for row in chosen] if rows.names else (),
        )
        identity = hashlib.blake2b(f"{count} of {self.origin.fingerprint}".encode(), digest_size=32).hexdigest()
        line = f"{count:,} of {self.origin.line}"
        origin = replace(self.origin, rows=count, line=line, fingerprint=identity)
        return Images(part, origin, self.max_corrupt, self._cache)

    @cached_property
    def channels(self) -> int:
        """1 when every one of 64 images spread over the set is grey, else 3."""
        rows = sorted({i * len(self) // LOOKED_AT for i in range(LOOKED_AT)})
        modes = {mode for row in rows if (mode := self._mode(row)) is not None}
        return 1 if modes <= {"L", "1"} else 3

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All images as uint8 [N, C, H, W] and labels as int64 [N]; decoded on the first call. Do not write to them.

        Raises BadData when sizes differ, too many images are corrupt, or the set is larger than 8 GiB.
        """
        import torch

        if self._tensors is None:
            kept = self._kept()
            if kept is not None and kept.exists():
                pixels, labels = np.load(kept, mmap_mode="c"), self.labels
            else:
                pixels, labels = self._decoded()
                if kept is not None and not self.corrupt:
                    whole = kept.with_suffix(f".{os.getpid()}.npy")
                    np.save(whole, pixels)
                    whole.replace(kept)
            self._tensors = torch.from_numpy(pixels), torch.from_numpy(labels)
        return self._tensors

    def replaced(self, row: int, use: Callable[[Any], NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], int]:
        """``use`` of the row's Pillow image, or of the next row's that can be decoded; and its label.

        Raises BadData when more than ``max_corrupt`` of the set cannot be decoded.
        """
        errors = cannot_decode()
        for step in range(len(self)):
            at = (row + step) % len(self)
            if at not in self.corrupt:
                try:
                    return use(self._opened(at)), int(self.labels[at])
                except errors as error:
                    self._count(at, error)
        raise AssertionError("max_corrupt is below 1")

    def _count(self, row: int, error: Exception) -> None:
        reason = (isinstance(error, OSError) and error.strerror) or error  # without the path, which the place has
        with self._lock:
            self.corrupt[row] = f"{self._rows.place(row)}: {reason}"
            if len(self.corrupt) > self.max_corrupt * len(self):
                raise BadData(
                    f"{len(self.corrupt):,} of {len(self):,} images cannot be decoded, more than the allowed share of "
                    f"{self.max_corrupt:g}. The first: {self.corrupt[min(self.corrupt)]}"
                ) from None

    def _opened(self, row: int) -> Any:
        from PIL import Image, UnidentifiedImageError

        image = self._rows.image(row)
        if isinstance(image, np.ndarray):
            return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        try:
            picture = Image.open(io.BytesIO(image))
        except UnidentifiedImageError:  # its message is the address of a buffer
            raise OSError(f"{len(image):,} bytes that are no image Pillow knows") from None
        if picture.mode.startswith("I;16"):  # convert() would clip to 255 instead of scaling
            return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        if picture.mode in ("I", "F"):
            raise OSError(f"pixels of mode {picture.mode}, whose range is not known; expected 8 or 16 bits")
        return picture

    def _mode(self, row: int) -> str | None:
        try:
            return str(self._opened(row).mode)
        except cannot_decode():
            return None  # counted when it is decoded

    def _kept(self) -> Path | None:
        """The file of the decoded set. Decoders differ in the last bit, so their version is in its name."""
        if self._cache is None:
            return None
        import PIL

        return self._cache / f"{self.origin.fingerprint[:32]}-pillow{PIL.__version__}-{DECODING}.npy"

    def _decoded(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        mode = "L" if self.channels == 1 else "RGB"

        def pixels_CHW(picture: Any) -> NDArray[np.uint8]:
            values = np.asarray(picture.convert(mode))
            return values[None] if mode == "L" else values.transpose(2, 0, 1)

        first, _ = self.replaced(0, pixels_CHW)
        if (size := len(self) * first.size) > LARGEST_BYTES:
            raise BadData(f"{self.origin.line}: {size / 2**30:.0f} GiB decoded; stream it with Batches(..., size=)")
        pixels_NCHW = np.empty((len(self), *first.shape), dtype=np.uint8)
        labels = self.labels.copy()

        def fill(start: int) -> None:
            for row in range(start, min(start + CHUNK, len(self))):
                image, labels[row] = self.replaced(row, pixels_CHW)
                if image.shape != first.shape:
                    raise BadData(
                        f"{self._rows.place(row)} is {image.shape[2]}x{image.shape[1]}, the first image "
                        f"{first.shape[2]}x{first.shape[1]}; images of mixed sizes need Batches(..., size=)"
                    )
                pixels_NCHW[row] = image

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for done in [pool.submit(fill, start) for start in range(0, len(self), CHUNK)]:
                done.result()
        return pixels_NCHW, labels
