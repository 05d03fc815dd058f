"""What the data door's parts share: the errors, the origin of a set, and rows not yet decoded.

A *source* (folder, Hub, package, generator) turns a name and a split into ``Rows`` or a ``str``. Everything after it
(decoding, fingerprint, batches) is the same for all. Sources do not know one another: ``archbench.models.data`` asks
them in turn.

Source: none; this is the project's own vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Where = Literal["folder", "hub", "package", "generated"]
# What asks for which stored split, nearest first: many sets have two splits, and folders name them differently.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "test"),
    "test": ("test", "validation", "val", "valid"),
}


class BadData(ValueError):
    """Data that is there and cannot be used; the message names the file and what was expected."""


class DataMissing(BadData):
    """Data that is nowhere; the message says where it was looked for and how to get it."""


@dataclass(frozen=True)
class Origin:
    """Where a set came from, and what identifies its content."""

    name: str
    split: str
    where: Where
    rows: int  # images, or tokens of a text
    line: str  # for people: no path of this machine
    fingerprint: str  # hexadecimal BLAKE2b of the content in order; the same wherever the data lies


@dataclass(frozen=True)
class Rows:
    """Labelled images, not decoded. Without labels ``classes`` is 0 and the labels are row numbers (for captions)."""

    image: Callable[[int], bytes | NDArray[np.uint8]]  # a file's bytes, or pixels HWC; raises OSError
    place: Callable[[int], str]  # the row's name in messages
    labels: NDArray[np.int64]
    classes: int
    where: Where
    told: str  # the origin's line, without name and counts
    captions: tuple[tuple[str, ...], ...] = ()
    files: tuple[Path, ...] = ()  # files of many rows; empty when the rows are in memory
    folder: Path | None = None  # a folder with a file per row
    names: Sequence[str] = ()  # those files, by row


def checked_labels(values: NDArray[np.generic], classes: int | None, place: str) -> tuple[NDArray[np.int64], int]:
    """The labels as int64 and the number of classes: ``classes``, or one more than the largest label.

    Raises BadData for labels that are not integers or outside of 0..classes-1.
    """
    if not np.issubdtype(values.dtype, np.integer):
        raise BadData(f"{place}: labels are {values.dtype}, expected integers without nulls")
    labels = values.astype(np.int64)
    classes = int(labels.max()) + 1 if classes is None else classes
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        row = int(wrong[0])
        raise BadData(
            f"{place}: {len(wrong):,} labels are outside of 0..{classes - 1}; the first is {labels[row]}, in row {row}"
        )
    return labels, classes
