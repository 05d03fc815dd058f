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
    try:
        top = Path(value).expanduser()
    except RuntimeError:  # ~name of an unknown user
        top = Path(value)
    if not top.is_dir():
        raise BadData(f"{VARIABLE}={value} is no folder; expected a folder with one folder per data set")
    return top


def searched(name: str) -> str:
    """Where a set was looked for and not found."""
    return f"{VARIABLE} is not set" if (top := root()) is None else f"{top / name} is not there"


def find_text(name: str) -> tuple[str, str] | None:
    """A text and how it is told: NAME.txt, text/NAME.txt, or the only text of the folder NAME. Raises BadData.

    None where the folder NAME holds images: texts in it and beside it are then licences and notes.
    """
    if (top := root()) is None or holds_images(top / name):
        return None
    found = [path for path in (top / f"{name}.txt", top / TEXTS / f"{name}.txt") if path.is_file()]
    found = found[:1] or sorted(path for path in (top / name).glob("*.txt") if is_shown(path.name))
    if not found:
        return None
    if len(found) > 1:
        raise BadData(f"{top / name} holds {len(found)} texts: ask for one of {', '.join(p.stem for p in found)}")
    try:
        text = found[0].read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadData(f"{found[0]} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from None
    return text.removeprefix("\ufeff"), f"from ${VARIABLE}/{found[0].relative_to(top).as_posix()}"


def locate(name: str, split: str) -> tuple[str, tuple[Path, ...]] | None:
    """$ARCHBENCH_DATA/NAME as messages show it, and the split's Parquet files or its one image folder.

    None: there is no such folder. Raises BadData when it is there without the split.
    """
    if (top := root()) is None or not os.path.lexists(folder := top / name):
        return None
    if not folder.is_dir():
        raise BadData(f"{folder} is no folder; expected a folder with the splits of {name}")
    for stored in SPLITS[split]:
        if files := parquet_files(folder, stored):
            return f"${VARIABLE}/{name}", files
        if (folder / stored).is_dir():
            return f"${VARIABLE}/{name}/{stored}", (folder / stored,)
    there = ", ".join(sorted(path.name for path in folder.iterdir() if is_shown(path.name))[:8]) or "nothing"
    raise BadData(f"{folder} holds {there}; expected {split}.parquet, or a folder {split} with a folder per class")


def holds_images(folder: Path) -> bool:
    """Whether any split of images is there."""
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


def is_shown(name: str) -> bool:
    """Whether it is no hidden file: editors, notebooks and macOS (``._0.png``) leave some beside the data."""
    return not name.startswith(".")


def kinds_in(folder: Path) -> list[str]:
    """The names of the classes, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_shown(entry.name) and entry.is_dir())


def open_folder(folder: Path, shown: str, classes: int | None) -> Rows:
    """Images in one folder per class; classes are numbered as the train split's folders are sorted. Raises BadData."""
    present = kinds_in(folder)
    if not present:
        raise BadData(f"{folder} has no folders; expected one per class, with images in it")
    # A split that lacks a class, or has one more, would otherwise give the same class another number than training did.
    train = next((place for stored in SPLITS["train"] if (place := folder.parent / stored).is_dir()), folder)
    kinds = kinds_in(train)
    if strange := sorted({*present} - {*kinds}):
        raise BadData(f"{folder} has {len(strange)} classes that {train} lacks: {', '.join(strange[:8])}")
    names, labels = [], []
    for kind in present:
        with os.scandir(folder / kind) as entries:
            images = sorted(e.name for e in entries if is_shown(e.name) and e.name.lower().endswith(SUFFIXES))
        names += [f"{kind}/{image}" for image in images]
        labels += [kinds.index(kind)] * len(images)
    if not names:
        raise BadData(f"{folder} holds no images in its {len(present)} folders; expected {', '.join(SUFFIXES)}")
    if classes is not None and classes != len(kinds):
        raise BadData(f"{train} has {len(kinds)} folders; expected one for each of {classes} classes")
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
