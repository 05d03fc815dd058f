"""Cases: what they are called, what is refused and why, and which of them a place measures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from archbench.models.resnet_norms import TRACK, ResNetCase
from archbench.track import Place

CPU = Place("cpu", cores=2, memory_bytes=8 << 30)
GPU = Place("cuda", cores=16, memory_bytes=80 << 30)


def test_slugs_tell_what_differs() -> None:
    assert ResNetCase().slug == "cifar10-w64-b64-e30"
    assert ResNetCase("cifar10", images=4096, width=8, batch=2, epochs=2).slug == "cifar10-n4096-w8-b2-e2"
    assert ResNetCase("mnist", images=60_000, precision="bf16", threads=1).slug == "mnist-w64-b64-e30-bf16-t1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "cifar"}, "data 'cifar': allowed are mnist, cifar10, imagenet-1k"),
        ({"batch": 0}, "batch 0, images 50000: a batch has 1 or more of the images, cifar10 has 50000 of them"),
        ({"batch": 65, "images": 64}, "batch 65, images 64: a batch has 1 or more"),
        ({"images": 50_001}, "images 50001: .* cifar10 has 50000 of them"),
        ({"width": 2}, "width 2: allowed are powers of two from 4"),
        ({"width": 36}, "width 36: allowed are powers of two from 4"),
        ({"precision": "fp16"}, "precision 'fp16': allowed are fp32, bf16"),
        ({"epochs": 0}, "epochs 0: at least 1"),
        ({"seeds": 0}, "seeds 0: at least 1"),
        ({"test_images": 0}, "test_images 0: at least 1"),
    ],
)
def test_a_case_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ResNetCase(), **changes)


def test_a_processor_measures_the_slim_cases_and_a_gpu_all() -> None:
    reasons = {case.slug: TRACK.skip(case, CPU) for case in TRACK.bench_cases}
    measured = {case.slug for case in TRACK.bench_cases if case.width == 8}
    assert {slug for slug, reason in reasons.items() if reason is None} == measured
    reason = reasons["cifar10-w64-b64-e30-bf16"]
    assert reason == "5e+15 operations a run are a GPU's work; CPU cases have at most 2e+13"
    assert [TRACK.skip(case, GPU) for case in TRACK.bench_cases] == [None] * len(TRACK.bench_cases)


def test_slim_cases_see_the_same_images_at_every_batch_size() -> None:
    slim = [case for case in TRACK.bench_cases if case.width == 8 and case.data == "cifar10"]
    assert {case.batch for case in slim} == {2, 8, 64, 256}
    assert {case.steps * case.batch for case in slim} == {slim[0].epochs * slim[0].images}
    assert {replace(case, batch=2) for case in slim} == {slim[0]}
