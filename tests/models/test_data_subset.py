"""A part of a set: the same images everywhere, known by a fingerprint of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from archbench.models.data import BadData, Batches, Images, load_images
from data_files import file_bytes, only_source, pixels, write_folder, write_parquet

COUNT = 12
FIRST_ROWS = [3, 5, 2, 9, 7]  # of twelve: hashes of row numbers, so a constant of the project


@pytest.fixture(autouse=True)
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return only_source(tmp_path / "data", monkeypatch)


def stored(top: Path, first_label: int = 0) -> Images:
    """Twelve images; each pixel of an image is its row, each label too."""
    images = [file_bytes(np.full((8, 8, 3), row, dtype=np.uint8)) for row in range(COUNT)]
    labels = list(range(COUNT))
    labels[0] = first_label
    write_parquet(top / "mine" / "train.parquet", images, labels)
    return load_images("mine")


def rows_of(images: Images) -> list[int]:
    return images.tensors()[0][:, 0, 0, 0].tolist()


def test_the_rows_are_the_same_on_every_machine_and_grow_with_the_count(top: Path) -> None:
    whole = stored(top)
    assert rows_of(whole.subset(5)) == FIRST_ROWS
    assert rows_of(whole.subset(3)) == FIRST_ROWS[:3]
    assert sorted(rows_of(whole.subset(11))) == sorted(set(rows_of(whole.subset(11))))


def test_labels_stay_with_their_images(top: Path) -> None:
    part = stored(top).subset(5)
    assert part.labels.tolist() == part.tensors()[1].tolist() == FIRST_ROWS
    assert part.classes == COUNT  # also where the part has none of a class
    images, labels = Batches(part, 5, train=False)(0)
    assert torch.equal(images[:, 0, 0, 0].argsort(), labels.argsort())


def test_a_part_has_a_fingerprint_of_its_own_that_follows_from_count_and_content(top: Path) -> None:
    whole = stored(top)
    prints = [whole.origin.fingerprint, *(whole.subset(count).origin.fingerprint for count in (5, 6))]
    assert len(set(prints)) == 3
    assert load_images("mine").subset(5).origin.fingerprint == prints[1]
    assert stored(top, first_label=1).subset(5).origin.fingerprint != prints[1]  # row 0 is not in the part
    origin = whole.subset(5).origin
    assert origin.line == "5 of mine/train from $ARCHBENCH_DATA/mine: 12 images, 12 PNG"
    assert (origin.rows, origin.name, origin.where) == (5, "mine", "folder")


def test_all_of_a_set_is_the_set(top: Path) -> None:
    whole = stored(top)
    assert whole.subset(COUNT) is whole


@pytest.mark.parametrize("count", [-1, 0, COUNT + 1, 4000])
def test_another_number_than_there_are_is_refused(top: Path, count: int) -> None:
    with pytest.raises(BadData, match=rf"^mine/train .*12 images, 12 PNG: {count:,} of them were asked for$"):
        stored(top).subset(count)


def test_decoded_parts_are_kept_apart(top: Path) -> None:
    whole = stored(top)
    assert rows_of(whole) == list(range(COUNT))
    for _ in range(2):  # decoded, then from the cache
        again = load_images("mine")
        assert rows_of(again.subset(3)) == FIRST_ROWS[:3]
        assert rows_of(again.subset(5)) == FIRST_ROWS


def test_a_part_of_a_part_and_of_a_folder_of_files(top: Path) -> None:
    assert set(rows_of(stored(top).subset(5).subset(2))) < set(FIRST_ROWS)
    write_folder(top / "insects" / "train", COUNT)
    part = load_images("insects").subset(5)
    images, labels = part.tensors()
    for image, label in zip(images, labels, strict=True):
        (row,) = (r for r in range(COUNT) if torch.equal(image, torch.from_numpy(pixels(r)).permute(2, 0, 1)))
        assert label == row % 2


def test_a_broken_image_of_a_part_is_replaced_by_the_next_of_the_part(top: Path) -> None:
    images = [file_bytes(np.full((8, 8, 3), row, dtype=np.uint8)) for row in range(COUNT)]
    images[FIRST_ROWS[1]] = b"broken"
    write_parquet(top / "mine" / "train.parquet", images, list(range(COUNT)))
    part = load_images("mine", max_corrupt=0.2).subset(5)
    expected = [FIRST_ROWS[0], FIRST_ROWS[2], *FIRST_ROWS[2:]]
    assert (rows_of(part), part.tensors()[1].tolist()) == (expected, expected)
    assert list(part.corrupt) == [1]
    assert f"row {FIRST_ROWS[1]}" in part.corrupt[1]


def test_labels_of_captions_are_rows_of_the_part(top: Path) -> None:
    (top / "told").mkdir()
    told = {"image": [file_bytes(pixels(r)) for r in range(COUNT)], "caption_0": [str(r) for r in range(COUNT)]}
    pq.write_table(pa.table(told), top / "told" / "train.parquet")
    part = load_images("told").subset(5)
    assert part.captions == tuple((str(row),) for row in FIRST_ROWS)
    assert part.tensors()[1].tolist() == list(range(5))
