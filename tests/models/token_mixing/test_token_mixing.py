"""Token mixing: models of equal size, batches that are functions of the step, runs that learn and repeat."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.checks import Wrong
from archbench.kernels.mixing_block._layers import FourierMixing, LinearMixing, SelfAttention
from archbench.models.token_mixing import TRACK, TokenMixingCase
from archbench.models.token_mixing._model import parameters_of
from archbench.models.token_mixing._tasks import evaluate, loss, task_of
from archbench.models.token_mixing._workload import Training
from archbench.track import Place, Unavailable

NAMES = ("attention", "fourier", "hybrid", "linear", "none")
TEXT = TokenMixingCase("cpython", 32, width=32, heads=2, batch=8, steps=4, seeds=1, test_rows=20)
IMAGES = TokenMixingCase("shapes", 64, patch=4, width=32, heads=2, batch=16, steps=4, seeds=1, test_rows=20)


def build(name: str, case: TokenMixingCase) -> Any:
    return importlib.import_module(f"archbench.models.token_mixing.{name}").CONTENDER.build(case)


@pytest.mark.parametrize("case", [TEXT, IMAGES, replace(TEXT, width=64, length=128)], ids=lambda case: case.slug)
def test_all_models_have_the_parameters_of_the_one_with_attention(case: TokenMixingCase) -> None:
    counts = {name: parameters_of(build(name, case)(0)) for name in NAMES}
    assert max(abs(count / counts["attention"] - 1) for count in counts.values()) < 0.02, counts


def test_a_mixing_larger_than_the_model_is_refused() -> None:
    with pytest.raises(Unavailable, match="the mixing alone has"):
        build("linear", replace(TEXT, length=512))


def test_the_hybrid_ends_with_two_layers_of_attention() -> None:
    kinds = [type(block.mixing) for block in build("hybrid", TEXT)(0).blocks]
    assert kinds == [FourierMixing, FourierMixing, SelfAttention, SelfAttention]
    assert {type(block.mixing) for block in build("linear", TEXT)(0).blocks} == {LinearMixing}


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_makes_the_model(name: str) -> None:
    factory = build(name, TEXT)
    first, again, other = (torch.nn.utils.parameters_to_vector(factory(seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("case", [TEXT, IMAGES], ids=lambda case: case.slug)
def test_who_mixes_sees_other_tokens_and_who_does_not_sees_none(case: TokenMixingCase) -> None:
    inputs = TRACK.make_inputs(case, 3, "cpu")[:-1]
    for name in NAMES:
        model = build(name, case)(0)
        embedded = model.embedding(inputs[0]).detach().requires_grad_()
        model.embedding = torch.nn.Identity()
        model.encoded(embedded)[0, 5, 0].backward()
        seen = embedded.grad[0].abs().sum(-1) > 0
        assert seen[5]
        assert seen.sum() == (1 if name == "none" else case.length), name
        assert not embedded.grad[1:].any(), "a sample sees another"


def test_masked_characters_are_those_that_were_there() -> None:
    task = task_of(TEXT)
    batches = task.batches(5)
    tokens_BT, positions_BM, targets_BM = batches(7)
    assert positions_BM.shape == (8, round(0.15 * 32))
    masked = tokens_BT == task.classes
    assert torch.equal(masked.sum(1), torch.full((8,), positions_BM.shape[1]))
    assert masked.gather(1, positions_BM).all()
    plain_BT = tokens_BT.scatter(1, positions_BM, targets_BM)
    text = task.train.tokens()
    found = [bool((text.unfold(0, 32, 1) == row).all(1).any()) for row in plain_BT]
    assert all(found)
    again, other = batches(7), task.batches(6)(7)
    assert all(torch.equal(a, b) for a, b in zip((tokens_BT, positions_BM, targets_BM), again, strict=True))
    assert not torch.equal(tokens_BT, other[0])


def test_loss_and_error_are_those_of_a_hand_computation() -> None:
    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits_V = torch.nn.Parameter(torch.tensor([2.0, 0.0, 0.0]))

        def forward(self, positions_BM: Any) -> Any:
            return self.logits_V.expand(*positions_BM.shape, 3)

    batch = (torch.zeros(2, 2, dtype=torch.int64), torch.tensor([[0, 1], [0, 0]]))
    log_total = math.log(math.exp(2) + 2)
    expected = (3 * (log_total - 2) + log_total) / 4
    assert loss(Fixed(), *batch).item() == pytest.approx(expected)
    assert evaluate(Fixed(), [batch, batch]) == pytest.approx({"test_error": 0.25, "test_loss": expected})


def test_a_run_learns_and_repeats_bit_by_bit() -> None:
    case = replace(TEXT, steps=60)
    first, again = (Training(case, build("fourier", case)).run(3, "cpu") for _ in range(2))
    assert first.curves["test_error"] == again.curves["test_error"]
    assert first.curves["loss"] == again.curves["loss"]
    begun, ended = first.curves["test_loss"][0][1], first.curves["test_loss"][-1][1]
    assert ended < begun - 0.7  # nats: from every character alike to how often each occurs
    assert first.metrics["test_error"] == first.curves["test_error"][-1][1]
    assert set(first.metrics) >= {"test_error", "test_loss", "train_s", "step_s", "input_bound"}


def test_a_target_that_is_reached_is_timed_and_one_that_is_not_is_left_out() -> None:
    for target, reached in ((1.0, True), (0.0, False)):
        case = replace(TEXT, target=target)
        assert ("seconds_to_target_s" in Training(case, build("none", case)).run(0, "cpu").metrics) is reached


def test_the_timed_step_trains_on_its_batch() -> None:
    training = Training(TEXT, build("attention", TEXT))
    batch = TRACK.make_inputs(TEXT, 1, "cpu")
    losses = [float(training(*batch)) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.5
    assert losses[0] == pytest.approx(math.log(task_of(TEXT).classes), rel=0.15)


def test_the_gate_wants_a_loss() -> None:
    batch = TRACK.make_inputs(TEXT, 1, "cpu")
    for wrong, sentence in (
        (torch.tensor(float("nan")), "the loss is nan"),
        (torch.tensor(100.0), "a guess among"),
        (torch.tensor(-1.0), "the loss is -1"),
        (torch.zeros(2), "a scalar tensor"),
        (1.0, "returned float"),
    ):
        with pytest.raises(Wrong, match=sentence):
            TRACK.gate(TEXT, batch, wrong)
    assert TRACK.gate(TEXT, batch, torch.tensor(3.0)) == 0.0


def test_the_data_has_a_name_an_origin_and_a_fingerprint() -> None:
    text, images = (Training(case, build("none", case)).data() for case in (TEXT, IMAGES))
    assert (text.name, images.name) == ("cpython", "shapes")
    assert "pydoc_data" in text.origin
    assert text.fingerprint != images.fingerprint


def test_data_that_is_nowhere_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARCHBENCH_DATA", raising=False)
    with pytest.raises(Unavailable, match="no-such-images"):
        build("fourier", TokenMixingCase("no-such-images", 49, patch=4))


def test_an_image_that_patches_do_not_cover_is_refused() -> None:
    with pytest.raises(ValueError, match="have 64 patches, not 49"):
        build("fourier", replace(IMAGES, length=49))


def test_large_runs_are_left_to_gpus() -> None:
    host, gpu = Place("cpu", 2, 4 << 30), Place("cuda", 2, 16 << 30)
    skipped = [case.slug for case in TRACK.bench_cases if TRACK.skip(case, host)]
    assert skipped
    assert all("GPU" in str(TRACK.skip(TRACK.case(slug), host)) for slug in skipped)
    assert not any(TRACK.skip(case, gpu) for case in TRACK.bench_cases)
