"""Batches: a pure function of the step, the same for any number of threads, ahead of time or not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from archbench.models._data import _draws
from archbench.models._data._augment import random_box
from archbench.models.data import Augment, Batches, Images, Prefetch, Text, Windows, load_images, load_text
from data_files import file_bytes, only_source, pixels, write_folder, write_parquet

ALL = Augment(flip=True, padding=2)


@pytest.fixture(autouse=True)
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return only_source(tmp_path / "data", monkeypatch)


@pytest.fixture
def small(top: Path) -> Images:
    """23 images of one size, each its own class."""
    write_parquet(top / "small" / "train.parquet", [file_bytes(pixels(s)) for s in range(23)], list(range(23)))
    return load_images("small")


@pytest.fixture
def mixed(top: Path) -> Images:
    """JPEG files of several sizes, upright and lying."""
    for row in range(11):
        path = top / "mixed" / "train" / f"class{row:02}" / "image.jpeg"
        path.parent.mkdir(parents=True)
        path.write_bytes(file_bytes(smooth(row, 40 + 9 * row, 120 - 7 * row), "JPEG"))
    return load_images("mixed")


def smooth(seed: int, width: int, height: int) -> np.ndarray:
    """A picture without fine detail, as photographs have little."""
    return np.asarray(Image.fromarray(pixels(seed, side=4)).resize((width, height), Image.Resampling.BICUBIC))


def same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def raw(images_BCHW: Tensor) -> Tensor:
    """The pixels before normalisation, of a set without published statistics."""
    return ((images_BCHW * 0.25 + 0.5) * 255).round().to(torch.uint8)


# --- the order


def test_an_epoch_has_every_row_once_and_the_next_another_order(small: Images) -> None:
    batches = Batches(small, 4)
    assert len(batches) == 5  # 23 rows: 3 are left out
    epochs = [torch.cat([batches(5 * epoch + step)[1] for step in range(5)]).tolist() for epoch in range(3)]
    for rows in epochs:
        assert len(set(rows)) == 20
    assert epochs[0] != epochs[1] != epochs[2]
    assert set().union(*epochs) == set(range(23))


def test_evaluation_has_every_row_in_order_and_nothing_after(small: Images) -> None:
    batches = Batches(small, 10, train=False, augment=ALL)
    assert torch.cat([batches(step)[1] for step in range(len(batches))]).tolist() == list(range(23))
    assert torch.equal(raw(batches(2)[0]), small.tensors()[0][20:])
    with pytest.raises(ValueError, match=r"step 3: expected 0 to 2"):
        batches(3)
    with pytest.raises(ValueError, match=r"step -1: expected 0 or more"):
        Batches(small, 10)(-1)


def test_a_step_is_the_same_in_any_order_and_from_any_object(small: Images) -> None:
    forward = Batches(small, 4, seed=3, augment=ALL)
    made = [forward(step) for step in range(12)]
    backward = Batches(small, 4, seed=3, augment=ALL)
    assert all(same(backward(step), made[step]) for step in reversed(range(12)))
    other = Batches(small, 4, seed=4, augment=ALL)
    assert not any(same(other(step), made[step]) for step in range(12))


# --- what is done to images


def test_a_padded_crop_is_a_shift_of_the_image_or_its_mirror(small: Images) -> None:
    batches = Batches(small, 23, augment=ALL)
    stored = torch.nn.functional.pad(small.tensors()[0], (2, 2, 2, 2))
    seen = set()
    for step in range(8):
        images, labels = batches(step)
        for image, label in zip(raw(images), labels, strict=True):
            candidates = {
                (down, right, flipped): window.flip(-1) if flipped else window
                for down in range(5)
                for right in range(5)
                for flipped in (False, True)
                for window in [stored[label, :, down : down + 12, right : right + 12]]
            }
            matching = [how for how, window in candidates.items() if torch.equal(image, window)]
            assert len(matching) == 1
            seen.add(matching[0])
    assert len(seen) > 45  # of 50 ways, in 184 draws


def test_augmentation_differs_between_steps_and_none_does_nothing(small: Images) -> None:
    plain, augmented = Batches(small, 23), Batches(small, 23, augment=ALL)
    images, labels = plain(0)
    assert torch.equal(raw(images), small.tensors()[0][labels])
    first, second = ({int(y): x for x, y in zip(*augmented(step), strict=True)} for step in (0, 1))
    assert sum(torch.equal(first[row], second[row]) for row in range(23)) < 5


def test_published_statistics_normalise_known_sets(top: Path) -> None:
    grey = [file_bytes(np.full((4, 4), value, dtype=np.uint8)) for value in (0, 255)]
    write_parquet(top / "mnist" / "train.parquet", grey, [0, 1])
    images, _ = Batches(load_images("mnist"), 2, train=False)(0)
    expected = [(0 - 0.1307) / 0.3081, (1 - 0.1307) / 0.3081]
    assert images[:, 0, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)


# --- streams


@pytest.mark.parametrize("train", [True, False])
def test_threads_change_nothing(mixed: Images, train: bool) -> None:
    options = {"train": train, "augment": Augment(flip=True), "size": 24}
    with Batches(mixed, 4, **options, workers=1) as one, Batches(mixed, 4, **options, workers=5) as five:
        assert all(same(one(step), five(step)) for step in range(len(one)))
        assert one(0)[0].shape == (4, 3, 24, 24)


def test_a_stream_mirrors_half_of_its_images_and_only_when_asked(mixed: Images) -> None:
    mirrored = total = 0
    with Batches(mixed, 11, size=16) as plain, Batches(mixed, 11, size=16, augment=Augment(flip=True)) as flipped:
        for step in range(6):
            for image, other in zip(plain(step)[0], flipped(step)[0], strict=True):
                assert torch.equal(other, image) or torch.equal(other, image.flip(-1))
                mirrored += torch.equal(other, image.flip(-1))
                total += 1
    assert 0.25 < mirrored / total < 0.75


def test_evaluation_takes_the_middle(top: Path) -> None:
    picture = np.zeros((256, 400, 3), dtype=np.uint8)
    picture[16:240, 88:312] = 255  # the middle 224x224
    path = top / "one" / "train" / "kind" / "image.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(file_bytes(picture))
    with Batches(load_images("one"), 1, train=False, size=224) as batches:
        assert raw(batches(0)[0]).min() == 255


def test_reduced_decoding_of_a_jpeg_stays_near_the_full_one(top: Path) -> None:
    for name, kind in (("reduced", "JPEG"), ("full", "PNG")):
        path = top / name / "train" / "kind" / f"image.{kind}"
        path.parent.mkdir(parents=True)
        values = smooth(7, 640, 480)
        if kind == "PNG":  # the JPEG's own pixels, stored without loss
            values = np.asarray(Image.open(top / "reduced" / "train" / "kind" / "image.JPEG"))
        path.write_bytes(file_bytes(values, kind))
    with Batches(load_images("reduced"), 1, size=32) as reduced, Batches(load_images("full"), 1, size=32) as full:
        for step in range(8):
            difference = raw(reduced(step)[0]).int() - raw(full(step)[0]).int()
            assert difference.abs().float().mean() < 2  # of 255


def test_random_boxes_lie_inside_and_have_the_asked_area_and_shape() -> None:
    augment = Augment()
    areas, shapes = [], []
    for draws in _draws.uniform(0, 0, np.arange(400), 41):
        left, top, right, bottom = random_box(500, 375, draws, augment)
        assert 0 <= left < right <= 500
        assert 0 <= top < bottom <= 375
        areas.append((right - left) * (bottom - top) / (500 * 375))
        shapes.append((right - left) / (bottom - top))
    assert min(areas) > 0.07
    assert np.mean(areas) == pytest.approx(0.48, abs=0.06)  # below 0.54: the largest of a shape do not fit
    assert 0.74 < min(shapes) < 0.8 < 1.25 < max(shapes) < 1.35


@pytest.mark.parametrize(("width", "height"), [(1000, 3), (3, 1000), (1, 1)])
def test_images_far_from_square_are_cropped_in_the_middle(width: int, height: int) -> None:
    augment = Augment(area=(0.9, 1.0))
    for draws in _draws.uniform(0, 0, np.arange(20), 41):
        left, top, right, bottom = random_box(width, height, draws, augment)
        assert abs(left - (width - right)) <= 1
        assert abs(top - (height - bottom)) <= 1
        assert min(width, height) == min(right - left, bottom - top)


# --- draws


def test_draws_depend_on_their_place_alone() -> None:
    rows = np.array([5, 900, 3, 5])
    draws = _draws.uniform(1, 2, rows, 6)
    assert np.array_equal(draws[0], draws[3])
    assert np.array_equal(draws[1:2], _draws.uniform(1, 2, rows[1:2], 6))
    assert np.array_equal(draws[:, :2], _draws.uniform(1, 2, rows, 2))
    for other in (_draws.uniform(2, 2, rows, 6), _draws.uniform(1, 3, rows, 6), _draws.uniform(-1, 2, rows, 6)):
        assert not (draws == other).any()


def test_draws_are_even_and_unrelated() -> None:
    steps = np.stack([_draws.uniform(0, step, np.arange(2000), 3) for step in range(5)])
    columns = steps.transpose(0, 2, 1).reshape(15, 2000)
    assert np.abs(columns.mean(axis=1) - 0.5).max() < 0.03
    related = np.corrcoef(columns) - np.eye(15)
    assert np.abs(related).max() < 0.1
    order = _draws.permutation(0, 0, 2000)
    assert sorted(order) == list(range(2000))
    assert abs(np.corrcoef(order, np.arange(2000))[0, 1]) < 0.1


# --- texts


def text_of(top: Path, content: str) -> Text:
    (top / "poem.txt").write_text(content)
    text = load_text("poem")
    return text


def test_windows_hold_the_text_and_its_next_characters(top: Path) -> None:
    text = text_of(top, "".join(chr(0x4E00 + i) for i in range(500)))  # every character once: ids are places
    windows = Windows(text, 4, 16, seed=1)
    assert text.vocabulary == 500
    epochs = []
    for epoch in range(3):
        cut = [windows(epoch * len(windows) + step) for step in range(len(windows))]
        for tokens, following in cut:
            assert tokens.shape == (4, 16)
            assert torch.equal(following, tokens + 1)
        places = torch.cat([tokens.flatten() for tokens, _ in cut]).tolist()
        assert len(set(places)) == len(places)
        assert max(places) < 450
        epochs.append(places)
    assert len({places[0] % 16 for places in epochs}) > 1  # offsets differ
    assert same(Windows(text, 4, 16, seed=1)(9), windows(9))


def test_windows_of_evaluation_go_from_the_start(top: Path) -> None:
    text = text_of(top, "".join(chr(0x4E00 + i) for i in range(50)))
    windows = Windows(text, 2, 10, train=False)
    assert [windows(step)[0].tolist() for step in range(len(windows))] == [
        [list(range(10)), list(range(10, 20))],
        [list(range(20, 30)), list(range(30, 40))],
    ]
    assert windows(1)[1][-1, -1] == 40


# --- ahead of time


def prefetching() -> int:
    return sum(thread.name.startswith(("prefetch", "decode")) for thread in threading.enumerate())


def test_prefetching_gives_the_same_batches_and_survives_jumps(small: Images) -> None:
    batches = Batches(small, 4, augment=ALL)
    with Prefetch(batches) as ahead:
        for step in (0, 1, 2, 3, 17, 18, 4, 4, 5):
            assert same(ahead(step), batches(step))
    assert prefetching() == 0


def test_prefetching_makes_the_next_steps_while_one_is_used() -> None:
    made = {step: threading.Event() for step in range(10)}

    def batches(step: int) -> tuple[Tensor, ...]:
        made[step].set()
        return (torch.tensor(step),)

    with Prefetch(batches, depth=3) as ahead:
        assert ahead(0)[0] == 0
        assert all(made[step].wait(60) for step in (1, 2, 3))
        assert not made[4].is_set()


def test_waiting_counts_what_the_consumer_stood_still_for() -> None:
    def batches(step: int) -> tuple[Tensor, ...]:
        time.sleep(0.05)
        return (torch.tensor(step),)

    start = time.perf_counter()
    with Prefetch(batches) as ahead:
        ahead(0)
        assert ahead.waited_s >= 0.05
        time.sleep(0.2)  # the consumer computes
        ahead(1)
        assert ahead.waited_s <= time.perf_counter() - start - 0.2


def test_threads_stop_on_errors_and_errors_arrive_where_they_belong(mixed: Images) -> None:
    def batches(step: int) -> tuple[Tensor, ...]:
        if step == 2:
            raise ValueError("step 2 is broken")
        return (torch.tensor(step),)

    def consume(use: Callable[[int], tuple[Tensor, ...]]) -> None:
        with Prefetch(use) as ahead:
            assert [int(ahead(step)[0]) for step in (0, 1)] == [0, 1]
            ahead(2)

    def fail() -> None:
        with Batches(mixed, 4, size=8) as stream, Prefetch(stream) as ahead:
            ahead(0)
            raise KeyError("the consumer fails")

    with pytest.raises(ValueError, match="step 2 is broken"):
        consume(batches)
    with pytest.raises(KeyError, match="the consumer fails"):
        fail()
    assert prefetching() == 0


def test_the_last_steps_of_evaluation_are_not_disturbed_by_those_after_them(small: Images) -> None:
    batches = Batches(small, 10, train=False)
    with Prefetch(batches, depth=4) as ahead:
        assert torch.cat([ahead(step)[1] for step in range(len(batches))]).tolist() == list(range(23))


def test_prefetching_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"depth=0: expected the number of steps"):
        Prefetch(lambda step: (torch.tensor(step),), depth=0)


def test_a_broken_image_is_counted_once_by_many_threads(top: Path) -> None:
    paths = write_folder(top / "insects" / "train", 20, ("ant",))
    paths[3].write_bytes(b"broken")
    insects = load_images("insects", max_corrupt=0.06)
    with Batches(insects, 20, size=6, workers=6) as batches:
        for step in range(4):
            batches(step)
    assert list(insects.corrupt) == [3]
