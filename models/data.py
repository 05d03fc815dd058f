"""The one door to data: ``load("cifar10")`` gives images or text, wherever they are found on this machine.

It looks into $ARCHBENCH_DATA, then on the Hugging Face Hub, then into installed packages that carry real data; a
generated stand-in has a name of its own and never replaces anything. What was loaded says where it came from and has a
fingerprint of its content, so that two results are on the same data or visibly not.

Source: https://huggingface.co/docs/datasets
"""

from __future__ import annotations

from archbench.models._data import SPLITS, BadData, DataMissing, Origin, Rows, folder, hub, packaged, parquet, shapes
from archbench.models._data import fingerprint as fingerprints
from archbench.models._data._images import Images
from archbench.models._data._text import Text, part
from archbench.models._data.batches import Augment, Batches, Prefetch, Windows

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
    "load",
]

PACKAGED_TEXTS = ("text", "cpython")


def load(name: str, split: str = "train", *, max_corrupt: float = 0.01) -> Images | Text:
    """A split (train, validation, test) of a data set; a set with two splits gives its test split for validation.

    Images that cannot be decoded are replaced while they are at most ``max_corrupt`` of the set, below 1.
    Raises DataMissing when the set is nowhere, BadData when it is there and cannot be used.
    """
    if split not in SPLITS:
        raise BadData(f"split {split!r} of {name}: expected one of {', '.join(SPLITS)}")
    if not 0 <= max_corrupt < 1:
        raise BadData(f"max_corrupt={max_corrupt}: expected a share from 0 up to, not including, 1")
    if (text := find_text(name)) is not None:
        return as_text(name, split, *text)
    rows = find_images(name, split)
    fingerprint, encodings = fingerprints.of_rows(rows)
    count = len(rows.labels)
    line = f"{name}/{split} {rows.told}: {count:,} images, {encodings}"
    cache = fingerprints.cache_folder("decoded") if rows.files or rows.folder else None
    return Images(rows, Origin(name, split, rows.where, count, line, fingerprint), max_corrupt, cache)


def find_text(name: str) -> tuple[str, str] | None:
    """The text of this name and how it is told; None: there is none."""
    if (found := folder.find_text(name)) is not None:
        return found
    return packaged.packaged_text() if name in PACKAGED_TEXTS else None


def as_text(name: str, split: str, text: str, told: str) -> Text:
    where = "folder" if told.startswith("from $") else "package"
    chosen = part(text, split, told)
    characters = "".join(sorted(set(text)))
    line = f"{name}/{split} {told}: {len(chosen):,} characters, {len(characters)} different"
    identity = fingerprints.of_text(f"{characters}\n{chosen}")
    return Text(chosen, characters, Origin(name, split, where, len(chosen), line, identity))


def find_images(name: str, split: str) -> Rows:
    """The rows of the first source that has the set. Raises DataMissing, BadData."""
    classes = hub.REPOSITORIES[name].classes or None if name in hub.REPOSITORIES else None
    if (located := folder.locate(name, split)) is not None:
        shown, paths = located
        if paths[0].is_dir():
            return folder.open_folder(paths[0], shown, classes)
        return parquet.open_parquet(paths, shown, classes)
    if name == shapes.NAME:
        return shapes.open_shapes(split)
    looked = [f"folder: {folder.searched(name)}"]
    try:
        stored = hub.fetch(name, split)
        return parquet.rows_of(stored, hub.REPOSITORIES[name].id, "hub", "from the Hugging Face Hub", classes, ())
    except DataMissing as missing:
        looked.append(f"Hub: {missing}")
    except ImportError as error:
        looked.append(f"Hub: needs the package {error.name}")
    try:
        if (rows := packaged.open_packaged(name, split)) is not None:
            return rows
        looked.append("packages: none carries it")
    except ImportError as error:
        looked.append(f"packages: needs the package {error.name}")
    raise DataMissing(
        f"no data set {name!r}. Looked for it in\n  "
        + "\n  ".join(looked)
        + f"\nEither put it into ${folder.VARIABLE}/{name}/ (layouts: docs/data.md), or go online: the Hub may have it"
    )
