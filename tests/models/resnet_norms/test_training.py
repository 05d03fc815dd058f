"""Whole runs on a small set of stripes: what they report, that they repeat, and what is said when they cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archbench.checks import Wrong
from archbench.harness.study import summary
from archbench.models.data import image_sets
from archbench.models.resnet_norms import TRACK, ResNetCase, _workload
from archbench.models.resnet_norms._model import NORMS
from archbench.models.resnet_norms._workload import LOST, Training, Watcher, factory, gate, recipe, spread
from archbench.models.train import Step, learning_rate
from archbench.track import Unavailable
from archbench.training import Outcome
from data_files import file_bytes, only_source, write_parquet

TINY = ResNetCase("mnist", images=64, test_images=32, width=4, batch=16, epochs=2, seeds=2, target_error=1.0)
OF_THE_CLOCK = {"input_bound", "seconds_to_target_s", "samples_per_s", "step_s"}
DIVERGENCE = "divergence over log10 of the learning rate"


def stripes(count: int, seed: int) -> tuple[list[bytes], list[int]]:
    """Images of ten kinds: stripes of five widths, upright or flat, at a random place, in noise."""
    draws = np.random.default_rng(seed)
    images, labels = [], [row % 10 for row in range(count)]
    for label in labels:
        wave = np.sin(2 * math.pi * (np.arange(28) / (3 + 2 * (label // 2)) + draws.random()))
        values = 128 + 80 * np.broadcast_to(wave, (28, 28)) + 20 * draws.standard_normal((28, 28))
        grey = np.clip(values if label % 2 else values.T, 0, 255).astype(np.uint8)
        images.append(file_bytes(grey))
    return images, labels


@pytest.fixture(scope="module", autouse=True)
def top(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The stripes lie where MNIST is looked for."""
    with pytest.MonkeyPatch.context() as patched:
        folder = only_source(tmp_path_factory.mktemp("stripes") / "data", patched)
        write_parquet(folder / "mnist" / "train.parquet", *stripes(320, seed=0))
        write_parquet(folder / "mnist" / "test.parquet", *stripes(100, seed=1))
        image_sets.cache_clear()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield folder
        torch.set_num_threads(threads)
        image_sets.cache_clear()


def training(norm: str, case: ResNetCase = TINY) -> Training:
    return Training(case, factory(norm)(case))


def timeless(outcome: Outcome) -> tuple[dict[str, Any], dict[str, Any]]:
    return tuple(  # type: ignore[return-value]
        {name: value for name, value in found.items() if name not in OF_THE_CLOCK}
        for found in (outcome.metrics, outcome.curves)
    )


# --- whole runs


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_learns_four_images_by_heart(norm: str) -> None:
    case = replace(TINY, width=8)
    lr, steps = (0.01, 130) if norm == "none" else (0.02, 40)
    step = Step(factory(norm)(case)(0), _workload.loss, replace(recipe(case), lr=lr))
    images, labels = TRACK.make_inputs(case, 3, "cpu")
    losses = [float(step(images[:4], labels[:4])) for _ in range(steps)]
    assert losses[0] > 1.9
    assert min(losses) < 0.4  # who knows only which labels there are has log 4


def test_a_run_reports_what_the_notes_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workload, "LR_FACTORS", (0.25, 1.0))
    case = replace(TINY, images=320, test_images=100, width=8, epochs=4, target_error=0.6)
    outcome = training("group", case).run(0, "cpu")
    assert outcome.curves["test_error"][0] == (0.0, pytest.approx(0.9, abs=0.1))
    assert outcome.metrics["test_error"] < 0.4
    assert outcome.metrics["diverged"] == 0
    assert 0 < outcome.metrics["steps_to_target"] <= case.steps
    assert outcome.metrics["seconds_to_target_s"] > 0
    assert 0 <= outcome.metrics["input_bound"] < 1
    assert 0 < outcome.metrics["loss_range"] < LOST
    assert 0 < outcome.metrics["gradient_change"] < LOST
    assert 1 < outcome.metrics["grad_norm_spread"] < LOST
    assert [step for step, _ in outcome.curves["loss_range"]] == [case.steps / 4 * look for look in range(5)]
    study = summary([outcome], TRACK.quality)
    assert set(study.metrics) == set(outcome.metrics)
    assert {"loss", "test_error", "grad_norm", "samples_per_s", DIVERGENCE} <= set(study.series)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_seed_is_a_run_bit_for_bit(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workload, "LR_FACTORS", (1.0,))
    work = training(norm)
    first, again, other = (timeless(work.run(seed, "cpu")) for seed in (1, 1, 2))
    assert first == again
    assert first[1]["loss"] != other[1]["loss"]


def test_an_absurd_learning_rate_is_marked_as_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workload, "LR_FACTORS", (1.0, 1e7))
    curve = training("group").run(0, "cpu").curves[DIVERGENCE]
    lr = math.log10(recipe(TINY).lr)
    assert curve == [(pytest.approx(lr, abs=1e-3), 0.0), (pytest.approx(lr + 7, abs=1e-3), 1.0)]


def test_a_run_that_diverges_has_the_error_of_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workload, "LR_OF_256", 1e7)
    outcome = training("none").run(0, "cpu")
    assert outcome.metrics["test_error"] == pytest.approx(0.9)
    assert outcome.metrics["diverged"] == 1
    assert not {"loss_range", "gradient_change", "grad_norm_spread"} & set(outcome.metrics)
    assert [value for _, value in outcome.curves[DIVERGENCE]] == [1.0] * 5
    summary([outcome], TRACK.quality)  # refuses numbers that are not finite


def test_a_look_that_leads_to_no_number_ends_no_run() -> None:
    case = replace(TINY, batch=64)
    model = factory("none")(case)(0).eval()
    watcher = Watcher(case, _workload.batches(case, 0), _workload.evaluation_batches(case), "cpu")
    watcher.reach = [1e30]
    with torch.no_grad():
        found = watcher(model)
    assert found == {"test_error": found["test_error"], "loss_range": LOST, "gradient_change": LOST}
    assert 0.7 <= found["test_error"] <= 1


def test_the_spread_is_of_percentiles() -> None:
    assert spread([float(value) for value in range(10, 0, -1)]) == 10 / 2
    assert spread([2.0]) == 1
    assert spread([0.0, 0.0, 1.0]) == LOST


# --- the recipe


def test_the_learning_rate_follows_the_batch() -> None:
    small, large = (recipe(ResNetCase("cifar10", batch=batch)) for batch in (64, 256))
    assert large.lr == 4 * small.lr == 0.4
    assert recipe(ResNetCase("imagenet-1k", batch=256)).lr == 0.1
    assert learning_rate(large, large.warmup_steps) == large.lr
    assert large.warmup_steps == large.steps // 20


def test_the_precision_of_a_case_is_that_of_its_runs() -> None:
    assert {recipe(case).precision == case.precision for case in TRACK.bench_cases} == {True}


# --- the timed step and its gate


@pytest.mark.parametrize("norm", NORMS)
def test_a_timed_step_passes_the_gate_and_hardly_moves_the_network(norm: str) -> None:
    work = training(norm)
    inputs = TRACK.make_inputs(TINY, 3, "cpu")
    losses = [work(*inputs) for _ in range(3)]
    assert [gate(TINY, inputs, loss) for loss in losses] == [0.0] * 3
    assert float(losses[2]) == pytest.approx(float(losses[0]), rel=1e-4)


def test_inputs_follow_from_the_seed() -> None:
    first, again, other = (TRACK.make_inputs(TINY, seed, "cpu") for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (16, 1, 28, 28)
    assert first[1].shape == (16,)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (torch.tensor(math.nan), "the loss is nan"),
        (torch.tensor(math.inf), "the loss is inf"),
        (torch.tensor(-0.1), "the loss is -0.1"),
        (torch.tensor(20.5), "expected a number from 0 to 20"),
        (torch.zeros(1), r"the loss is \[0.\]"),
        ((torch.tensor(1.0), torch.tensor(1.0)), "returned 2 values, expected the loss"),
    ],
    ids=["nan", "inf", "negative", "large", "vector", "two"],
)
def test_the_gate_refuses_what_is_no_loss(outputs: Any, message: str) -> None:
    with pytest.raises(Wrong, match=message):
        gate(TINY, (), outputs)


# --- the data


def test_the_data_of_a_cell_changes_with_its_part_and_with_the_test_images() -> None:
    cases = (TINY, replace(TINY, images=80), replace(TINY, test_images=33))
    found = [training("batch", case).data() for case in cases]
    assert len({data.fingerprint for data in found}) == 3
    assert found[0] == training("none").data() == training("batch", replace(TINY, width=8, batch=2)).data()
    assert found[0].name == "mnist"
    assert found[0].origin == (
        "64 of mnist/train from $ARCHBENCH_DATA/mnist: 320 images, 320 PNG; "
        "tested on 32 of mnist/test from $ARCHBENCH_DATA/mnist: 100 images, 100 PNG"
    )


def test_fewer_images_than_the_case_asks_for_are_another_case() -> None:
    with pytest.raises(Unavailable, match=r"320 images, 320 PNG; the case wants 60,000"):
        _workload.of(replace(TINY, images=60_000))
    with pytest.raises(Unavailable, match=r"100 images, 100 PNG; the case wants 10,000"):
        training("batch", replace(TINY, test_images=10_000))


def test_missing_data_is_unavailable_and_says_how_to_get_it() -> None:
    case = ResNetCase("cifar10", images=64, width=4)
    ways = r"(?s)'cifar10' is on this machine nowhere.*put it into \$ARCHBENCH_DATA/cifar10/ .*or go online"
    for ask in (lambda: training("batch", case), lambda: TRACK.make_inputs(case, 0, "cpu")):
        with pytest.raises(Unavailable, match=ways):
            ask()


def test_data_that_is_there_and_broken_is_unavailable_with_the_reason(top: Path) -> None:
    write_parquet(top / "cifar10" / "train.parquet", *stripes(10, seed=2))
    try:
        with pytest.raises(Unavailable, match=r"cifar10 holds train\.parquet; expected test\.parquet"):
            training("batch", ResNetCase("cifar10", images=64, width=4))
    finally:
        (top / "cifar10" / "train.parquet").unlink()
        (top / "cifar10").rmdir()
