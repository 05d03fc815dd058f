"""The data door on real sets: MNIST, CIFAR-10, Flickr8k, Shakespeare, where this machine has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from archbench.models.data import Augment, Batches, Prefetch, load_images, load_text

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("ARCHBENCH_DATA") or ROOT.parent / "shared" / "data")

needs = {
    name: pytest.mark.skipif(not (DATA / name).exists(), reason=f"{name} is not in $ARCHBENCH_DATA or ../shared/data")
    for name in ("mnist", "cifar10", "flickr8k", "text/tinyshakespeare.txt")
}


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHBENCH_DATA", str(DATA))


@needs["mnist"]
def test_mnist() -> None:
    test = load_images("mnist", "test")
    images, labels = test.tensors()
    assert images.shape == (10_000, 1, 28, 28)
    assert torch.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert images.float().mean() == pytest.approx(255 * 0.1325, rel=1e-3)
    assert test.corrupt == {}


@needs["cifar10"]
def test_cifar10_says_how_it_is_encoded_and_trains_from_a_thread() -> None:
    test = load_images("cifar10", "test")
    assert test.origin.line.endswith(("10,000 JPEG (lossy)", "10,000 PNG"))
    assert torch.bincount(test.tensors()[1]).tolist() == [1000] * 10
    batches = Batches(test, 100, augment=Augment(flip=True, padding=4))
    with Prefetch(batches) as ahead:
        seen = torch.cat([ahead(step)[0] for step in range(len(batches))])
    assert seen.mean(dim=(0, 2, 3)).abs().max() < 0.35  # padding darkens the published statistics
    assert seen.std(dim=(0, 2, 3)).tolist() == pytest.approx([1.15] * 3, abs=0.15)


@needs["flickr8k"]
def test_flickr8k_has_five_captions_per_image() -> None:
    test = load_images("flickr8k", "test")
    assert test.classes == 0
    assert {len(captions) for captions in test.captions} == {5}
    with Batches(test, 50, train=False, size=32) as batches:
        images, rows = batches(3)
    assert images.shape == (50, 3, 32, 32)
    assert rows.tolist() == list(range(150, 200))


@needs["text/tinyshakespeare.txt"]
def test_tinyshakespeare() -> None:
    train, test = load_text("tinyshakespeare"), load_text("tinyshakespeare", "test")
    assert (len(train), len(test), train.vocabulary) == (1_003_854, 111_540, 65)
    assert train.decode(train.tokens()[:14]) == "First Citizen:"


@needs["mnist"]
@needs["cifar10"]
def test_fingerprints_identify_the_sets() -> None:
    found = {
        f"{name}/{split}": load_images(name, split).origin.fingerprint
        for name in ("mnist", "cifar10")
        for split in ("test", "train")
    }
    assert len(set(found.values())) == 4
    again = {f"{name}/test": load_images(name, "validation").origin.fingerprint for name in ("mnist", "cifar10")}
    assert again.items() <= found.items()
