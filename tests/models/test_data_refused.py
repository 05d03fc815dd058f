"""Bad data: broken images are replaced and counted, everything else is refused before training, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from archbench.models._data import _images
from archbench.models.data import BadData, Batches, Windows, load, load_images, load_text
from data_files import file_bytes, only_source, pixels, write_folder, write_parquet

FOUR = [file_bytes(pixels(seed)) for seed in range(4)]


@pytest.fixture(autouse=True)
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return only_source(tmp_path / "data", monkeypatch)


def broken(content: bytes, how: str) -> bytes:
    if how == "flipped":
        middle = len(content) // 2
        return content[:middle] + bytes(255 - byte for byte in content[middle : middle + 40]) + content[middle + 40 :]
    return {"cut": content[: len(content) // 2], "empty": b"", "text": b"<html>404</html>"}[how]


# --- broken images


@pytest.mark.parametrize(
    ("kind", "how"), [("JPEG", "cut"), ("PNG", "cut"), ("PNG", "flipped"), ("PNG", "empty"), ("JPEG", "text")]
)
def test_a_broken_image_is_replaced_by_the_next_and_named(top: Path, kind: str, how: str) -> None:
    paths = write_folder(top / "insects" / "train", 12, kind=kind)
    whole, _ = load_images("insects").tensors()
    paths[4].write_bytes(broken(paths[4].read_bytes(), how))  # the third ant
    insects = load_images("insects", max_corrupt=0.1)
    images, labels = insects.tensors()
    assert list(insects.corrupt) == [2]
    assert insects.corrupt[2].startswith(f"{paths[4]}: ")
    assert torch.equal(images[2], whole[3])
    kept = [row for row in range(12) if row != 2]
    assert torch.equal(images[kept], whole[kept])
    assert labels.tolist() == [0] * 6 + [1] * 6


def test_the_last_image_is_replaced_by_the_first_with_its_label(top: Path) -> None:
    write_parquet(top / "mine" / "train.parquet", [*FOUR[:3], b"broken"], [0, 1, 2, 3])
    mine = load_images("mine", max_corrupt=0.3)
    images, labels = mine.tensors()
    assert torch.equal(images[3], images[0])
    assert labels.tolist() == [0, 1, 2, 0]
    assert mine.corrupt[3].startswith(f"row 3 of {top / 'mine' / 'train.parquet'}: ")
    assert mine.labels.tolist() == [0, 1, 2, 3]


def test_a_row_without_bytes_counts_as_broken(top: Path) -> None:
    write_parquet(top / "mine" / "train.parquet", [None, *FOUR[1:]], [0, 1, 2, 3])
    mine = load_images("mine", max_corrupt=0.3)
    assert mine.origin.line.endswith("4 images, 3 PNG, 1 unreadable")
    assert mine.tensors()[1].tolist() == [1, 1, 2, 3]
    assert mine.corrupt[0].endswith("no bytes are stored")


@pytest.mark.parametrize("size", [None, 8])
def test_too_many_broken_images_are_refused(top: Path, size: int | None) -> None:
    paths = write_folder(top / "insects" / "train", 12)
    for path in paths[:3]:
        path.write_bytes(b"broken")
    with pytest.raises(
        BadData, match=r"of 12 images cannot be decoded, more than the allowed share of 0\.1\. The first"
    ):
        Batches(load_images("insects", max_corrupt=0.1), 12, size=size)(0)


def test_a_stream_replaces_a_broken_image_too(top: Path) -> None:
    paths = write_folder(top / "insects" / "train", 8, ("ant",))
    paths[5].write_bytes(b"broken")
    insects = load_images("insects", max_corrupt=0.2)
    with Batches(insects, 8, train=False, size=6) as batches:
        images, _ = batches(0)
    assert torch.equal(images[5], images[6])
    assert not torch.equal(images[4], images[5])
    assert list(insects.corrupt) == [5]


# --- what is refused


def test_a_cut_parquet_file_is_named(top: Path) -> None:
    path = write_parquet(top / "mine" / "train.parquet", FOUR, [0, 1, 2, 3])
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BadData, match=r"train\.parquet is no readable Parquet file"):
        load("mine")


def test_parquet_with_a_broken_page_is_named(top: Path) -> None:
    path = write_parquet(top / "mine" / "train.parquet", FOUR, [0, 1, 2, 3])
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 60 + content[64:])
    with pytest.raises(BadData, match=r"train\.parquet cannot be read"):
        load("mine")


@pytest.mark.parametrize(
    ("labels", "names", "told"),
    [
        ([0, 1, 2, 3], ["a", "b", "c"], r"1 labels are outside of 0\.\.2; the first is 3, in row 3"),
        ([0, -1, 2, -1], None, r"2 labels are outside of 0\.\.2; the first is -1, in row 1"),
        ([0.0, 1.0, 2.0, 3.0], None, r"labels are float64, expected integers"),
        ([0, None, 2, 3], None, r"labels are float64, expected integers without nulls"),
        (["a", "b", "c", "d"], None, r"labels are object, expected integers"),
    ],
)
def test_labels_that_are_no_classes_are_refused(top: Path, labels: Any, names: list[str] | None, told: str) -> None:
    path = write_parquet(top / "mine" / "train.parquet", FOUR, labels, names)
    with pytest.raises(BadData, match=told) as refused:
        load("mine")
    assert str(refused.value).startswith(str(path))


def test_a_known_set_has_its_known_number_of_classes(top: Path) -> None:
    write_parquet(top / "cifar10" / "train.parquet", FOUR, [0, 1, 2, 10])
    with pytest.raises(BadData, match=r"outside of 0\.\.9; the first is 10"):
        load("cifar10")
    write_folder(top / "imagenet-1k" / "val", 4)
    with pytest.raises(BadData, match=r"has 2 folders; expected one for each of 1000 classes"):
        load("imagenet-1k", "validation")


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"picture": FOUR, "label": [0] * 4}, r"has the columns picture, label; expected one of image, img"),
        ({"image": FOUR, "class": [0] * 4}, r"expected one of image, img, and one of label"),
        ({"image": ["a.png"] * 4, "label": [0] * 4}, r"images are string; expected bytes"),
        ({"image": [], "label": pa.array([], pa.int64())}, r"train\.parquet holds no rows"),
    ],
)
def test_other_layouts_of_parquet_are_refused(top: Path, columns: dict[str, Any], told: str) -> None:
    (top / "mine").mkdir()
    pq.write_table(pa.table(columns), top / "mine" / "train.parquet")
    with pytest.raises(BadData, match=told):
        load("mine")


def test_folders_without_classes_or_images_are_refused(top: Path) -> None:
    (top / "mine").mkdir()
    with pytest.raises(BadData, match=r"mine holds nothing; expected train\.parquet, or a folder train"):
        load("mine")
    (top / "mine" / "train").mkdir()
    (top / "mine" / "train" / "1.png").write_bytes(FOUR[0])
    with pytest.raises(BadData, match=r"train has no folders; expected one per class"):
        load("mine")
    (top / "mine" / "train" / "ant").mkdir()
    with pytest.raises(BadData, match=r"train holds no images in its 1 folders; expected \.jpg"):
        load("mine")


def test_images_of_mixed_sizes_need_a_crop(top: Path) -> None:
    files = [*FOUR[:3], file_bytes(pixels(3, side=9))]
    path = write_parquet(top / "mine" / "train.parquet", files, [0, 1, 2, 3])
    mine = load_images("mine")
    with pytest.raises(BadData, match=r"is 9x9, the first image 12x12; images of mixed sizes need Batches") as told:
        Batches(mine, 2)
    assert str(told.value).startswith(f"row 3 of {path}")
    with Batches(mine, 4, size=6) as batches:
        assert batches(0)[0].shape == (4, 3, 6, 6)


def test_a_set_larger_than_memory_is_sent_to_streaming(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(top / "mine" / "train.parquet", FOUR, [0, 1, 2, 3])
    monkeypatch.setattr(_images, "LARGEST_BYTES", 1000)
    with pytest.raises(BadData, match=r"stream it with Batches"):
        load_images("mine").tensors()


def test_texts_that_cannot_be_used_are_named(top: Path) -> None:
    (top / "text").mkdir()
    (top / "text" / "one.txt").write_bytes(b"fine \xff")
    with pytest.raises(BadData, match=r"one\.txt is not UTF-8: byte 5 is 0xff"):
        load("one")
    (top / "text" / "two.txt").write_text("")
    with pytest.raises(BadData, match=r"two\.txt: the train part of 0 characters is empty"):
        load("two")
    with pytest.raises(BadData, match=r"text holds 2 texts: ask for one of one, two"):
        load("text")
    (top / "text" / "three.txt").write_text("short" * 10)
    with pytest.raises(BadData, match=r"too short for windows of 23"):
        Windows(load_text("three"), 1, 23)


@pytest.mark.parametrize("batch", [0, 5])
def test_a_batch_larger_than_the_set_is_refused(top: Path, batch: int) -> None:
    write_parquet(top / "mine" / "train.parquet", FOUR, [0, 1, 2, 3])
    with pytest.raises(BadData, match=rf"a batch of {batch} of 4 rows"):
        Batches(load_images("mine"), batch)


def test_a_text_is_no_image_and_images_are_no_text() -> None:
    with pytest.raises(BadData, match=r"cpython/train .*: a text, expected images"):
        load_images("cpython")
    with pytest.raises(BadData, match=r"shapes/test .*: expected a text"):
        load_text("shapes", "test")
