"""The memory of a step by part: what is measured is what is there, and formulas predict it."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the memory looked at is torch's")

from archbench.models._memory import Allocation, storages
from archbench.models.switch_lm import MEMORY, TRACK, SwitchCase
from archbench.models.switch_lm._memory import _highest, formula_of, measured, profile
from archbench.models.switch_lm._memory_formula import Formula
from archbench.models.switch_lm._model import Experts, dense, switch
from archbench.models.switch_lm._text import loss, text_of

CASE = SwitchCase("cpython", length=24, width=32, heads=2, layers=2, batch=6, steps=10, seeds=1)
CASES = {
    "plain": CASE,
    "odd": replace(CASE, length=17, width=40, heads=5, layers=3, batch=5),
    "everybody is kept": replace(CASE, capacity_factor=16.0),
    "more experts than tokens": replace(CASE, length=1, batch=3, capacity_factor=1.0),
    "bf16": replace(CASE, precision="bf16", layers=4),
    "bf16, long": replace(CASE, precision="bf16", length=64, batch=3, capacity_factor=2.0),
}
MODELS: dict[str, Callable[[SwitchCase], Any]] = {
    "dense": dense,
    "dense, wide": lambda case: dense(case, times=4),
    "4 experts": lambda case: switch(case, 4),
    "8 experts": lambda case: switch(case, 8),
    "16 experts": lambda case: switch(case, 16),
    "8 experts, router in bf16": lambda case: switch(case, 8, torch.bfloat16),
}
WITHIN = 0.1
SCALARS = 128  # bytes of the losses and factors that autograd keeps, which no formula counts


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def found(case: str, model: str) -> dict[str, float]:
    return profile(CASES[case], MODELS[model](CASES[case])(0), "cpu")


def apart(metrics: dict[str, float], part: str) -> float:
    """By what share the formula misses, beyond the scalars."""
    seen, said = metrics[f"{part}_bytes"], metrics[f"{part}_formula_bytes"]
    return max(0.0, abs(said - seen) - SCALARS) / seen


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", CASES)
def test_formulas_predict_every_part(case: str, model: str) -> None:
    metrics = found(case, model)
    parts = [part for part in (*MEMORY, "step_peak") if part != "routing" or "experts" in model]
    assert set(metrics) == {f"{part}{kind}_bytes" for part in parts for kind in ("", "_formula")}
    for part in ("parameters", "gradients", "optimizer", "buffers"):
        assert metrics[f"{part}_formula_bytes"] == metrics[f"{part}_bytes"]
    for part in parts:
        assert apart(metrics, part) <= WITHIN, part


@pytest.mark.parametrize("model", ["dense", "8 experts"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_autograd_keeps_is_found_in_the_allocations(model: str, precision: str) -> None:
    """Two ways of counting: tensors that are saved for the backward pass, and memory that is not given back."""
    case = replace(CASE, precision=precision)
    network = MODELS[model](case)(0)
    batch = text_of(case).batches(0)(0)
    there = storages([*network.parameters(), *network.buffers(), *batch])
    kept: dict[int, int] = {}

    def save(tensor: Any) -> Any:
        kept.update(storages([tensor]))
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        value = loss(network, *batch)
    saved = sum(size for address, size in kept.items() if address not in there)
    parts = measured(case, network, "cpu")
    assert value.requires_grad
    assert abs(parts.activations + parts.routing - saved) <= SCALARS


def test_profiling_leaves_the_model_as_it_was() -> None:
    network = switch(CASE, 4)(0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    profile(CASE, network, "cpu")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network._forward_hooks


def test_tokens_that_find_no_room_keep_no_rows() -> None:
    """Nine of them find room at each of four experts."""
    cases = (replace(CASE, capacity_factor=factor) for factor in (16.0, 0.25))
    all_kept, some_kept = (measured(case, switch(case, 4)(0), "cpu") for case in cases)
    assert all_kept.kept == (CASE.tokens,)
    assert 0 < some_kept.kept[0] <= 4 * 9
    assert some_kept.routing < all_kept.routing
    assert some_kept.activations < all_kept.activations


@pytest.mark.parametrize("part", ["activations", "routing"])
def test_a_formula_that_forgets_a_tensor_is_seen(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention's queries, keys and values, or the rows that experts are given."""
    case = CASES["everybody is kept"]
    forgotten = 4 * case.tokens * case.width * (3 * case.layers if part == "activations" else 1)
    right = getattr(Formula, part)
    monkeypatch.setattr(Formula, part, lambda *arguments: right(*arguments) - forgotten)
    assert apart(profile(case, switch(case, 4)(0), "cpu"), part) > WITHIN


def test_a_model_that_keeps_more_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden units of every token before ReLU, say."""
    case = CASES["everybody is kept"]
    plain = Experts.forward

    def wasteful(ctx: Any, x_ND: Any, *rest: Any) -> Any:
        ctx.more = x_ND.new_zeros(len(x_ND), case.hidden)
        return plain(ctx, x_ND, *rest)

    monkeypatch.setattr(Experts, "forward", staticmethod(wasteful))
    assert apart(profile(case, switch(case, 4)(0), "cpu"), "activations") > WITHIN


def test_the_formula_knows_a_model_by_its_sizes() -> None:
    characters = text_of(CASE).characters
    assert formula_of(CASE, dense(CASE)(0)) == Formula(CASE, characters, 128)
    assert formula_of(CASE, MODELS["dense, wide"](CASE)(0)) == Formula(CASE, characters, 512)
    assert formula_of(CASE, switch(CASE, 8)(0)) == Formula(CASE, characters, 128, 8)
    assert formula_of(CASE, switch(CASE, 8, torch.bfloat16)(0)) == Formula(CASE, characters, 128, 8, 2)


def test_the_highest_moment_knows_the_gradients_of_the_step_before() -> None:
    a, b = 0xA0, 0xB0
    taken = [
        Allocation(1.0, a, 100),
        Allocation(2.0, 0xC0, -500),  # older than the list
        Allocation(5.0, b, 70),
        Allocation(6.0, a, -100),
        Allocation(7.0, a, 90),
    ]
    assert _highest(taken, begins_s=4.0, gradients=20) == 170
    assert _highest(taken, begins_s=4.0, gradients=80) == 180


def test_the_board_stacks_what_is_measured_beside_what_is_predicted() -> None:
    measured_names, predicted_names = TRACK.stacks.values()
    metrics = found("plain", "8 experts")
    assert [name.replace("_formula", "") for name in predicted_names] == list(measured_names)
    assert {*measured_names, *predicted_names} <= set(metrics)
