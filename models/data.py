"""The one door to data: ``load("cifar10")`` gives images or text, wherever they are found on this machine.

It looks into $ARCHBENCH_DATA, then on the Hugging Face Hub, then into installed packages that carry real data; a
generated stand-in has a name of its own and never replaces anything. What was loaded says where it came from and has a
fingerprint of its content, so that two results are on the same data or visibly not.

Source: https://huggingface.co/docs/datasets
"""

from __future__ import annotations

from functools import lru_cache

from archbench.models._data import (
    SPLITS,
    BadData,
    DataMissing,
    Origin,
    Rows,
    Where,
    folder,
    hub,
    packaged,
    parquet,
    shapes,
)
from archbench.models._data import fingerprint as fingerprints
from archbench.models._data._augment import Augment
from archbench.models._data._images import Images
from archbench.models._data._text import Text, part
from archbench.models._data.batches import Batches, Prefetch, Windows
from archbench.names import is_safe_name, unknown
from archbench.track import Unavailable

__all__ = [
    "Augment",
    "BadData",
    "Batches",
    "DataMissing",
    "Images",
    "Origin",
    "Prefetch",
    "Text",
    "Windows",
    "image_sets",
    "load",
    "load_images",
    "load_text",
]

PACKAGED_TEXTS = ("text", "cpython")
KNOWN_IMAGES = {*hub.REPOSITORIES, *packaged.IMAGES, shapes.NAME}  # no text is taken for one of these
KNOWN = {*KNOWN_IMAGES, *PACKAGED_TEXTS}


def load(name: str, split: str = "train", *, max_corrupt: float = 0.01) -> Images | Text:
    """A split (train, validation, test) of a data set; a set with two splits gives its test split for validation.

    Images that cannot be decoded are replaced while they are at most ``max_corrupt`` of the set, below 1.
    Raises DataMissing when the set is nowhere, BadData when it is there and cannot be used.
    """
    if not is_safe_name(name):
        raise BadData(
            f"{name!r:.60} is no name of a data set: expected 1 to 100 letters, digits, spaces and . _ + -, the first "
            "a letter or digit"
        )
    if split not in SPLITS:
        raise BadData(f"split {split!r} of {name}: expected one of {', '.join(SPLITS)}")
    if not 0 <= max_corrupt < 1:
        raise BadData(f"max_corrupt={max_corrupt}: expected a share from 0 up to, not including, 1")
    if name not in KNOWN_IMAGES and (text := folder.find_text(name)) is not None:
        return as_text(name, split, "folder", *text)
    if name in PACKAGED_TEXTS:
        return as_text(name, split, "package", *packaged.packaged_text())
    rows = find_images(name, split)
    fingerprint, encodings = fingerprints.of_rows(rows)
    count = len(rows.labels)
    line = f"{name}/{split} {rows.told}: {count:,} images, {encodings}"
    cache = fingerprints.cache_folder("decoded") if rows.files or rows.folder else None
    return Images(rows, Origin(name, split, rows.where, count, line, fingerprint), max_corrupt, cache)


def load_images(name: str, split: str = "train", *, max_corrupt: float = 0.01) -> Images:
    """``load`` where only images will do. Raises BadData for a text."""
    loaded = load(name, split, max_corrupt=max_corrupt)
    if not isinstance(loaded, Images):
        raise BadData(f"{loaded.origin.line}: a text, expected images")
    return loaded


@lru_cache(maxsize=2)
def image_sets(name: str, images: int, test_images: int, channels: int) -> tuple[Images, Images]:
    """A case's training and test images; a process looks at them once. Raises Unavailable where they are missing."""
    try:
        train, test = load_images(name, "train"), load_images(name, "test")
    except BadData as bad:
        raise Unavailable(str(bad)) from bad
    for found, wanted in ((train, images), (test, test_images)):
        if len(found) < wanted:  # a package carries a small part of a set
            raise Unavailable(f"{found.origin.line}; the case wants {wanted:,}")
        if found.channels != channels:
            raise Unavailable(f"{found.origin.line}, of {found.channels} channels; expected {channels}")
    return train.subset(images), test.subset(test_images)


def load_text(name: str, split: str = "train") -> Text:
    """``load`` where only a text will do. Raises BadData for images."""
    loaded = load(name, split)
    if not isinstance(loaded, Text):
        raise BadData(f"{loaded.origin.line}: expected a text")
    return loaded


def as_text(name: str, split: str, where: Where, text: str, told: str) -> Text:
    """The split of a text that was found, with its origin. Raises BadData."""
    chosen = part(text, split, told)
    characters = "".join(sorted(set(text)))
    line = f"{name}/{split} {told}: {len(chosen):,} characters, {len(characters)} different"
    identity = fingerprints.of_text(f"{characters}\n{chosen}")
    return Text(chosen, characters, Origin(name, split, where, len(chosen), line, identity))


def find_images(name: str, split: str) -> Rows:
    """The rows of the first source that has the set. Raises DataMissing, BadData."""
    if (located := folder.locate(name, split)) is not None:
        shown, paths = located
        known = hub.REPOSITORIES[name].classes if name in hub.REPOSITORIES else 0
        if paths[0].is_dir():
            return folder.open_folder(paths[0], shown, known or None)
        stored = parquet.read_files(paths)
        return parquet.rows_of(stored, str(paths[0]), "folder", f"from {shown}", known or None, paths)
    if name == shapes.NAME:
        return shapes.open_shapes(split)
    looked = [f"folder: {folder.searched(name)}"]
    own = f"put it into ${folder.VARIABLE}/{name}/ (layouts: docs/data.md)"
    if name not in KNOWN:
        lower = name.lower()
        known_as = f"unknown data set {name!r}: did you mean {lower!r}?" if lower in KNOWN else None
        told = known_as or unknown("data set", name, KNOWN)
        raise DataMissing(f"{told}. {looked[0]}: for a set of your own, {own}")
    if name in hub.REPOSITORIES:
        try:
            stored, told, arrow = hub.fetch(name, split)
            return parquet.rows_of(stored, told, "hub", f"from {told}", hub.REPOSITORIES[name].classes or None, arrow)
        except DataMissing as missing:
            looked.append(f"Hub: {missing}")
        except ImportError as error:
            looked.append(f"Hub: {needs(error)}")
    try:
        if (rows := packaged.open_packaged(name, split)) is not None:
            return rows
        looked.append("packages: none carries it")
    except ImportError as error:
        looked.append(f"packages: {needs(error)}")
    raise DataMissing(
        "\n  ".join([f"the data set {name!r} is on this machine nowhere. Looked for it in", *looked])
        + f"\nEither {own}, or go online: the Hub may have it"
    )


def needs(error: ImportError) -> str:
    return f"needs the package {(error.name or str(error)).partition('.')[0]}"
