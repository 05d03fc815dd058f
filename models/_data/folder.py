"""A user's own copy, below $ARCHBENCH_DATA: Parquet files, an image folder, or a text.

``mnist/train.parquet`` and ``mnist/data/train-00000-of-00002.parquet`` (the Hub's layout), ``imagenet-1k/train/<class>/
*.JPEG`` (unpacked archives), ``text/tinyshakespeare.txt``. A folder that is there must deliver: what it lacks is an
error and is not fetched elsewhere, because two splits of different origin would be no split.

Source: https://huggingface.co/docs/datasets/image_dataset
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from archbench.models._data import SPLITS, BadData, Rows, checked_labels

VARIABLE = "ARCHBENCH_DATA"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TEXTS = "text"  # the folder of plain texts


def root() -> Path | None:
    """The folder of data sets. Raises BadData when the variable names none."""
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    if not Path(value).is_dir():
        raise BadData(f"{VARIABLE}={value} is no folder; expected a folder with one folder per data set")
    return Path(value)


def searched(name: str) -> str:
    """Where a set was looked for and not found."""
    return f"{VARIABLE} is not set" if (top := root()) is None else f"{top / name} is not there"


def find_text(name: str) -> tuple[str, str] | None:
    """A text and how it is told: NAME.txt, text/NAME.txt, or the only text of the folder NAME. Raises BadData."""
    if (top := root()) is None:
        return None
    found = [path for path in (top / f"{name}.txt", top / TEXTS / f"{name}.txt") if path.is_file()]
    found = found[:1] or ([] if holds_images(top / name) else sorted((top / name).glob("*.txt")))
    if not found:
        return None
    if len(found) > 1:
        raise BadData(f"{top / name} holds {len(found)} texts: ask for one of {', '.join(p.stem for p in found)}")
    try:
        text = found[0].read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadData(f"{found[0]} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from None
    return text, f"from ${VARIABLE}/{found[0].relative_to(top).as_posix()}"


def locate(name: str, split: str) -> tuple[str, tuple[Path, ...]] | None:
    """$ARCHBENCH_DATA/NAME as messages show it, and the split's Parquet files or its one image folder.

    None: there is no such folder. Raises BadData when it is there without the split.
    """
    if (top := root()) is None or not (folder := top / name).is_dir():
        return None
    for stored in SPLITS[split]:
        if files := parquet_files(folder, stored):
            return f"${VARIABLE}/{name}", files
        if (folder / stored).is_dir():
            return f"${VARIABLE}/{name}/{stored}", (folder / stored,)
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise BadData(f"{folder} holds {there}; expected {split}.parquet, or a folder {split} with a folder per class")


def holds_images(folder: Path) -> bool:
    """Whether any split of images is there; texts beside it are then licences and notes."""
    return any(
        parquet_files(folder, stored) or (folder / stored).is_dir() for stored in sorted(set(sum(SPLITS.values(), ())))
    )


def parquet_files(folder: Path, stored: str) -> tuple[Path, ...]:
    """One file, or the Hub's shards beside it or in ``data/``."""
    if (folder / f"{stored}.parquet").is_file():
        return (folder / f"{stored}.parquet",)
    for place in (folder, folder / "data"):
        if shards := sorted(place.glob(f"{stored}-*-of-*.parquet")):
            return tuple(shards)
    return ()


def open_folder(folder: Path, shown: str, classes: int | None) -> Rows:
    """Images in one folder per class; classes are numbered in the order of their names. Raises BadData."""
    with os.scandir(folder) as entries:
        kinds = sorted(entry.name for entry in entries if entry.is_dir())
    if not kinds:
        raise BadData(f"{folder} has no folders; expected one per class, with images in it")
    names, labels = [], []
    for label, kind in enumerate(kinds):
        with os.scandir(folder / kind) as entries:
            images = sorted(entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES))
        names += [f"{kind}/{image}" for image in images]
        labels += [label] * len(images)
    if not names:
        raise BadData(f"{folder} holds no images in its {len(kinds)} folders; expected {', '.join(SUFFIXES)}")
    if classes is not None and classes != len(kinds):
        raise BadData(f"{folder} has {len(kinds)} folders; expected one for each of {classes} classes")
    checked, count = checked_labels(np.array(labels), len(kinds), str(folder))
    return Rows(
        image=lambda row: (folder / names[row]).read_bytes(),
        place=lambda row: str(folder / names[row]),
        labels=checked,
        classes=count,
        where="folder",
        told=f"from {shown}",
        folder=folder,
        names=names,
    )
