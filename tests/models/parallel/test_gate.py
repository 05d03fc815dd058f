"""The gate of parallel training: right updates pass; every way to lose one is refused, and so is a number misplaced."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is trained with torch")

from archbench.checks import Wrong
from archbench.models.parallel import TRACK, ParallelCase, make_inputs
from archbench.models.parallel._gate import EXACT, HALF, ROUNDED, Bounds, judge, judge_parameters, reference
from archbench.models.parallel._model import language_model, loss_of, optimizer_of
from archbench.models.parallel._ways.sharding import Shard, digest, moments, whole

CASE = ParallelCase(layers=2, dim=64, length=15, batch=8, micro_batches=4, vocabulary=64)
TOKENS = make_inputs(CASE, 1, "cpu")[0]
Answer = tuple[dict[str, Any], dict[str, Any]]

# What goes wrong in two ranks that each train on half of the batch.
FAULTS = (
    "gradients not exchanged",
    "gradients summed",
    "gradient of rank 1 lost",
    "rank 1 skips the optimizer",
    "rank 1 stale after the last update",
    "first and second half of a shard exchanged",
    "loss of rank 0 alone",
    "no weight decay",
    "last micro-batch forgotten",
    "state of the optimizer kept from another call",
)
# AdamW divides by the gradient's size, and remembers: these change an update by less than eight bits do.
BELOW_ROUNDING = ("gradients summed", "state of the optimizer kept from another call")


@lru_cache
def two_ranks(fault: str = "") -> Answer:
    """What two ranks would answer, and all parameters; simulated in this process. Not to be changed."""
    models = [language_model(CASE) for _ in range(2)]
    first = [[p.detach().clone() for p in model.parameters()] for model in models]
    optimizers = [optimizer_of(model) for model in models]
    for optimizer in optimizers:
        if fault == "no weight decay":
            optimizer.param_groups[0]["weight_decay"] = 0.0
    if fault == "state of the optimizer kept from another call":
        update(models, optimizers, torch.from_numpy(TOKENS[0]), "")
        for model, values in zip(models, first, strict=True):
            for parameter, value in zip(model.parameters(), values, strict=True):
                parameter.data.copy_(value)
    losses = []
    for number, batch in enumerate(torch.from_numpy(TOKENS)):
        late = fault == "rank 1 stale after the last update" and number == len(TOKENS) - 1
        losses.append(update(models, optimizers, batch, "rank 1 skips the optimizer" if late else fault))
    if fault == "first and second half of a shard exchanged":
        for model in models:
            weight = dict(model.named_parameters())["1.query.weight"].data
            weight.copy_(weight.roll(len(weight) // 2, 0))
    shards = [[Shard(name, p.detach(), 2) for name, p in model.named_parameters()] for model in models]
    held: list[Any] = []
    digest(shards[0], first[0], lambda own: held.append(own) or [])
    numbers = digest(shards[1], first[1], lambda own: [*held, own])
    held = []
    whole(shards[0], lambda own: held.append(own) or [])
    return {"losses": np.array(losses), "digest": numbers}, whole(shards[1], lambda own: [*held, own])


def update(models: list[Any], optimizers: list[Any], batch: Any, fault: str) -> float:
    losses = []
    for model, own in zip(models, batch.chunk(2), strict=True):
        parts = own.chunk(2)
        loss = sum((loss_of(model(part[:, :-1]), part[:, 1:]) for part in parts[1:]), start=torch.zeros(()))
        if fault != "last micro-batch forgotten":
            loss = loss + loss_of(model(parts[0][:, :-1]), parts[0][:, 1:])
        (loss / len(parts)).backward()
        losses.append(float(loss.detach()) / len(parts))
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        share = 1.0 if fault == "gradients summed" else 0.5
        if fault == "gradient of rank 1 lost":
            other.grad = torch.zeros_like(other.grad)
        if fault != "gradients not exchanged":
            one.grad = other.grad = (one.grad + other.grad) * share
    for rank, optimizer in enumerate(optimizers):
        if not (rank == 1 and fault == "rank 1 skips the optimizer"):
            optimizer.step()
        optimizer.zero_grad()
    return losses[0] if fault == "loss of rank 0 alone" else sum(losses) / 2


def test_right_updates_pass_with_room() -> None:
    answer, parameters = two_ranks()
    names = ("losses", "sums", "length", "number", "spread")
    quarter = Bounds(*(getattr(EXACT, name) / 4 for name in names), "a quarter")
    assert judge(CASE, TOKENS, answer, quarter) < 1e-3
    assert judge_parameters(CASE, TOKENS, parameters, quarter) < 1e-4


@pytest.mark.parametrize("fault", FAULTS)
def test_the_track_refuses_every_fault(fault: str) -> None:
    with pytest.raises(Wrong):
        TRACK.gate(CASE, (TOKENS,), two_ranks(fault)[0])


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in BELOW_ROUNDING])
@pytest.mark.parametrize("bounds", [ROUNDED, HALF], ids=["rounded", "half"])
def test_gates_of_eight_bits_refuse_what_is_no_rounding(bounds: Bounds, fault: str) -> None:
    with pytest.raises(Wrong):
        bounds(CASE, (TOKENS,), two_ranks(fault)[0])


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "loss of rank 0 alone"])
def test_parameters_show_every_fault_of_parameters(fault: str) -> None:
    with pytest.raises(Wrong):
        judge_parameters(CASE, TOKENS, two_ranks(fault)[1])


def test_two_numbers_exchanged_within_a_parameter_are_seen() -> None:
    parameters = dict(two_ranks()[1])
    weight = parameters["2.up.weight"] = parameters["2.up.weight"].copy()
    weight[3, 5], weight[7, 1] = weight[7, 1], weight[3, 5]
    with pytest.raises(Wrong, match=r"2\.up\.weight"):
        judge_parameters(CASE, TOKENS, parameters)


def test_a_missing_parameter_is_named() -> None:
    parameters = dict(two_ranks()[1])
    del parameters["1.key.bias"]
    with pytest.raises(Wrong, match=r"1\.key\.bias"):
        judge_parameters(CASE, TOKENS, parameters)


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d[:, :2], lambda d: d * np.nan], ids=["P", "3", "nan"])
def test_a_digest_of_another_form_is_refused(change: Callable[[Any], Any]) -> None:
    answer, _ = two_ranks()
    with pytest.raises(Wrong, match="digest"):
        judge(CASE, TOKENS, {**answer, "digest": change(answer["digest"])})


def test_wrong_losses_are_refused_though_parameters_are_right() -> None:
    answer, _ = two_ranks()
    with pytest.raises(Wrong, match="losses"):
        judge(CASE, TOKENS, {**answer, "losses": answer["losses"] * (1 + 1e-5)})


def test_the_reference_is_trained_once_for_the_same_tokens() -> None:
    content = TOKENS.tobytes()
    assert reference(CASE, content) is reference(CASE, content)


def test_a_digest_of_pieces_is_that_of_the_whole() -> None:
    values = torch.arange(35.0, dtype=torch.float64).reshape(5, 7).sin()
    pieces = [((0, 0), values[:2]), ((2, 0), values[2:, :3]), ((2, 3), values[2:, 3:])]
    total = sum(moments(piece, start) for start, piece in pieces)
    assert torch.allclose(total, moments(values), rtol=1e-12)


@pytest.mark.parametrize(
    "swap", [lambda v: v.T, lambda v: v.flip(0), lambda v: v.roll(1, 1)], ids=["T", "rows", "columns"]
)
def test_a_digest_sees_where_numbers_are(swap: Callable[[Any], Any]) -> None:
    values = torch.arange(36.0, dtype=torch.float64).reshape(6, 6).sin()
    same, squares, weighted = moments(values) - moments(swap(values))
    assert abs(same) < 1e-12
    assert abs(squares) < 1e-12
    assert abs(weighted) > 0.1


def test_shards_of_several_ranks_make_the_whole() -> None:
    values = torch.arange(12.0).reshape(4, 3)
    ranks = [
        [Shard("10.weight", values[:3], 1, (0, 0), (4, 3)), Shard("2.bias", values[0], 2)],
        [Shard("10.weight", values[3:], 1, (3, 0), (4, 3)), Shard("2.bias", values[0], 2)],
    ]
    held: list[Any] = []
    whole(ranks[0], lambda own: held.append(own) or [])
    found = whole(ranks[1], lambda own: [*held, own])
    assert list(found) == ["2.bias", "10.weight"]
    np.testing.assert_array_equal(found["10.weight"], values.numpy())
    np.testing.assert_array_equal(found["2.bias"], values[0].numpy())
