"""What the data door must not mistake: classes of two splits, notes for texts, hidden files, names, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archbench.models.data import Augment, BadData, Batches, DataMissing, load, load_images, load_text
from data_files import file_bytes, only_source, pixels, write_folder, write_parquet


@pytest.fixture(autouse=True)
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return only_source(tmp_path / "data", monkeypatch)


# --- classes


def test_every_split_numbers_its_classes_as_train_does(top: Path) -> None:
    write_folder(top / "insects" / "train", 6, ("ant", "bee", "wasp"))
    write_folder(top / "insects" / "test", 4, ("bee", "wasp"))
    test = load_images("insects", "test")
    assert (test.labels.tolist(), test.classes) == ([1, 1, 2, 2], 3)
    before = test.origin.fingerprint
    write_folder(top / "insects" / "train", 1, ("aphid",))  # renumbers files of test that did not change
    test = load_images("insects", "test")
    assert (test.labels.tolist(), test.classes) == ([2, 2, 3, 3], 4)
    assert test.origin.fingerprint != before


def test_a_class_that_train_lacks_is_refused(top: Path) -> None:
    write_folder(top / "insects" / "training", 4)
    write_folder(top / "insects" / "val", 4, ("bee", "cicada"))
    with pytest.raises(BadData, match=r"val has 1 classes that .*training lacks: cicada"):
        load("insects", "validation")


def test_a_split_alone_numbers_its_own_classes(top: Path) -> None:
    write_folder(top / "insects" / "test", 4, ("bee", "wasp"))
    assert load_images("insects", "test").labels.tolist() == [0, 0, 1, 1]


def test_hidden_files_and_folders_are_not_data(top: Path) -> None:
    write_folder(top / "insects" / "train", 4)
    (top / "insects" / "train" / ".ipynb_checkpoints").mkdir()
    (top / "insects" / "train" / "ant" / "._0000.png").write_bytes(b"macOS")
    insects = load_images("insects")
    assert (insects.classes, insects.labels.tolist()) == (2, [0, 0, 1, 1])
    (top / "poem").mkdir()
    (top / "poem" / "poem.txt").write_text("ab" * 20)
    (top / "poem" / "._poem.txt").write_text("macOS")
    assert load_text("poem").characters == "ab"


# --- texts


@pytest.mark.parametrize("place", ["shapes.txt", "text/shapes.txt", "shapes/notes.txt"])
def test_the_name_of_a_known_image_set_is_no_text(top: Path, place: str) -> None:
    (top / place).parent.mkdir(exist_ok=True)
    (top / place).write_text("a note " * 20)
    if place.startswith("shapes/"):
        with pytest.raises(BadData, match=r"shapes holds notes\.txt; expected train\.parquet"):
            load("shapes")
    else:
        assert load("shapes").origin.where == "generated"


@pytest.mark.parametrize("name", ["mnist", "digits", "cifar10"])
def test_a_note_beside_a_known_set_is_not_read(top: Path, name: str) -> None:
    (top / f"{name}.txt").write_text("a note " * 20)
    write_parquet(top / name / "train.parquet", [file_bytes(pixels(0))], [0])
    assert load_images(name).origin.rows == 1


def test_a_folder_of_images_comes_before_a_text_of_its_name(top: Path) -> None:
    (top / "insects.txt").write_text("where they were found " * 5)
    assert load("insects").origin.line.startswith("insects/train from $ARCHBENCH_DATA/insects.txt")
    write_folder(top / "insects" / "train", 2)
    assert load_images("insects").origin.rows == 2


def test_a_byte_order_mark_is_no_character(top: Path) -> None:
    (top / "poem.txt").write_bytes(b"\xef\xbb\xbf" + b"ab" * 20)
    assert load_text("poem").characters == "ab"


# --- pixels


def test_sixteen_bits_are_scaled_and_not_clipped(top: Path) -> None:
    grey = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    write_parquet(top / "scans" / "train.parquet", [file_bytes(grey)] * 2, [0, 0])
    scans = load_images("scans")
    assert scans.channels == 1
    assert torch.equal(scans.tensors()[0][0, 0], torch.from_numpy((grey // 256).astype(np.uint8)))


def test_pixels_of_unknown_range_are_refused(top: Path) -> None:
    deep = file_bytes(np.full((4, 4), 70_000, dtype=np.int32), "TIFF")
    write_parquet(top / "scans" / "train.parquet", [deep], [0])
    with pytest.raises(BadData, match=r"pixels of mode I, whose range is not known; expected 8 or 16 bits"):
        load_images("scans").tensors()


def test_a_dangling_link_is_an_unreadable_image(top: Path) -> None:
    paths = write_folder(top / "insects" / "train", 4)
    paths[2].unlink()
    paths[2].symlink_to(top / "nowhere.png")
    insects = load_images("insects", max_corrupt=0.3)
    assert insects.origin.line.endswith("4 images, 3 PNG, 1 unreadable")
    insects.tensors()
    assert insects.corrupt == {1: f"{paths[2]}: No such file or directory"}


def test_what_is_no_image_is_told_without_an_address(top: Path) -> None:
    paths = write_folder(top / "insects" / "train", 2, ("ant",))
    paths[0].write_bytes(b"<html>404</html>")
    with pytest.raises(BadData, match=r"0000\.PNG: 16 bytes that are no image Pillow knows$"):
        load_images("insects").tensors()


# --- names


@pytest.mark.parametrize("name", ["..", ".", "/etc", "", "a/b", "x" * 300, "a\0b", None, 3])
def test_what_cannot_be_a_name_is_refused_before_any_path_is_made(name: Any) -> None:
    with pytest.raises(BadData, match=r"is no name of a data set: expected 1 to 100 letters") as refused:
        load(name)
    assert len(str(refused.value)) < 200


def test_a_name_in_capitals_gets_a_suggestion() -> None:
    with pytest.raises(DataMissing, match=r"unknown data set 'MNIST': did you mean 'mnist'\?"):
        load("MNIST")


@pytest.mark.parametrize("name", ["mnist", "mine"])
def test_a_file_where_a_folder_belongs_is_refused(top: Path, name: str) -> None:
    (top / name).write_bytes(b"")
    with pytest.raises(BadData, match=rf"{name} is no folder; expected a folder with the splits of {name}"):
        load(name)


def test_the_home_folder_is_understood(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(top / "insects" / "train", 2)
    monkeypatch.setenv("HOME", str(top.parent))
    monkeypatch.setenv("ARCHBENCH_DATA", f"~/{top.name}")
    assert load_images("insects").origin.rows == 2
    monkeypatch.setenv("ARCHBENCH_DATA", "~nobody-of-this-name/data")
    with pytest.raises(BadData, match=r"ARCHBENCH_DATA=~nobody-of-this-name/data is no folder"):
        load("insects")


# --- options


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 0}, r"size=0: expected 1 or more"),
        ({"size": -8}, r"size=-8: expected 1 or more"),
        ({"size": 8, "workers": 0}, r"workers=0: expected 1 or more"),
        ({"workers": -1}, r"workers=-1: expected 1 or more"),
    ],
)
def test_batches_of_no_size_or_by_nobody_are_refused(top: Path, options: dict[str, Any], told: str) -> None:
    write_folder(top / "insects" / "train", 2)
    with pytest.raises(ValueError, match=told):
        Batches(load_images("insects"), 1, **options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"padding": -1}, r"padding=-1: expected 0 or more pixels"),
        ({"area": (0.0, 1.0)}, r"area=\(0\.0, 1\.0\): expected two shares above 0 and up to 1"),
        ({"area": (0.5, 1.5)}, r"area=\(0\.5, 1\.5\): expected two shares"),
        ({"area": (0.9, 0.1)}, r"the smaller first"),
        ({"area": (float("nan"), 1.0)}, r"area=\(nan, 1\.0\): expected two shares"),
        ({"ratio": (0.0, 1.0)}, r"ratio=\(0\.0, 1\.0\): expected two ratios above 0"),
    ],
)
def test_augmentations_that_cannot_be_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Augment(**options)


# --- the pages


def test_the_snippet_of_the_page_on_training_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="the snippet trains on the digits of the package scikit-learn")
    page = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # it writes a checkpoint
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    assert names["history"].scalars()["test_error"] < 0.2
    assert (tmp_path / "run.pt").is_file()
