"""Equations 28 to 35 of docs/derivations/moe.md: the memory of a training step, against what a step really holds."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.models._memory import held_bytes
from archbench.models.switch_lm import SwitchCase
from archbench.models.switch_lm._memory import Parts, measured
from archbench.models.switch_lm._model import dense, switch
from archbench.models.switch_lm._text import text_of

CASE = SwitchCase("cpython", length=20, width=24, heads=3, layers=3, batch=4, steps=10, seeds=1)
CASES = (
    CASE,
    replace(CASE, width=40, heads=2, layers=4, length=9, capacity_factor=16.0),
    replace(CASE, precision="bf16"),
)
EXPERTS = (0, 4, 16)  # 0: dense
SCALARS = 64  # bytes of the losses and factors that autograd keeps beside


@cache
def step(case: SwitchCase, experts: int) -> Parts:
    return measured(case, (switch(case, experts) if experts else dense(case))(0), "cpu")


def characters(case: SwitchCase) -> int:
    return text_of(case).characters


def product(case: SwitchCase) -> int:
    return 2 if case.precision == "bf16" else 4


def switched(case: SwitchCase, experts: int) -> int:
    return case.layers // 2 if experts else 0


def matrices(case: SwitchCase, experts: int) -> int:
    m = switched(case, experts)
    return 2 * case.width * 4 * case.width * (case.layers - m + experts * m)


def numbers(case: SwitchCase, experts: int) -> int:
    """Equation 28."""
    n, d, m = case.layers, case.width, switched(case, experts)
    ends = (2 * characters(case) + case.length + 2) * d
    return n * (4 * d**2 + 4 * d) + matrices(case, experts) + experts * d * m + ends


def dense_activations(case: SwitchCase) -> int:
    """Equation 30."""
    d, c = case.width, product(case)
    block = 8 * (d + 2) + 4 * case.heads + c * (6 * d + 4 * d)
    return case.tokens * (case.layers * block + 4 * (d + 2 + characters(case)) + c * d)


def routed_change(case: SwitchCase, kept: int) -> int:
    """Equation 31."""
    c, d = product(case), case.width
    return c * 4 * d * (kept - case.tokens) + (4 - c) * d * case.tokens


def copies(case: SwitchCase, experts: int) -> int:
    """Equation 32; in fp32 nothing is copied."""
    n, d = case.layers, case.width
    biases = n * case.heads * case.length**2
    total = 2 * (4 * n * d**2 + matrices(case, experts) + characters(case) * d + biases)
    return total if case.precision == "bf16" else 0


def routing(case: SwitchCase, experts: int, kept: int) -> int:
    """Equation 33."""
    assignment = 16 + product(case) * (1 + 2 * case.width)
    return case.tokens * (4 * (2 * experts + 1) + 8) + kept * assignment + 4 * experts


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.slug)
def test_equation_28_numbers(case: SwitchCase, experts: int) -> None:
    model = (switch(case, experts) if experts else dense(case))(0)
    assert numbers(case, experts) == sum(parameter.numel() for parameter in model.parameters())
    tensors = 8 * case.layers + switched(case, experts) + 5
    assert tensors == len(list(model.parameters()))


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.slug)
def test_equation_29_four_copies(case: SwitchCase, experts: int) -> None:
    found, weights = step(case, experts), 4 * numbers(case, experts)
    assert found.parameters == found.gradients == weights
    assert found.optimizer == 2 * weights + 4 * (8 * case.layers + switched(case, experts) + 5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.slug)
def test_equation_30_activations_of_a_dense_model(case: SwitchCase) -> None:
    assert 0 <= step(case, 0).activations - dense_activations(case) - copies(case, 0) <= SCALARS


@pytest.mark.parametrize("experts", EXPERTS[1:])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.slug)
def test_equation_31_activations_of_a_switch_layer(case: SwitchCase, experts: int) -> None:
    found = step(case, experts)
    change = sum(routed_change(case, kept) for kept in found.kept)
    assert 0 <= found.activations - dense_activations(case) - copies(case, experts) - change <= SCALARS


def test_equation_32_copies_in_bf16() -> None:
    """Two counts of experts differ by the copies alone, when as many tokens are kept."""
    case = replace(CASE, precision="bf16", capacity_factor=16.0)
    few, many = step(case, 4), step(case, 16)
    assert few.kept == many.kept
    assert many.activations - few.activations == copies(case, 16) - copies(case, 4)
    alone = replace(case, batch=1)
    assert copies(alone, 16) > step(alone, 16).activations / 2
    model = dense(case)(0)
    assert held_bytes(model.buffers()) == 4 * case.layers * case.heads * case.length**2


@pytest.mark.parametrize("experts", EXPERTS[1:])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.slug)
def test_equation_33_routing(case: SwitchCase, experts: int) -> None:
    found = step(case, experts)
    wanted = sum(routing(case, experts, kept) for kept in found.kept)
    assert 0 <= found.routing - wanted <= SCALARS * len(found.kept)


def test_equation_34_routing_beside_a_dense_block() -> None:
    case = replace(CASE, width=96, heads=4, length=32, layers=2, capacity_factor=16.0)
    d, tokens = case.width, case.tokens
    block = 8 * (d + 2) + 4 * case.heads + 4 * 10 * d
    for experts in (4, 16):
        want = (8 * d + 8 * experts + 32) / (48 * d + 4 * case.heads + 16)
        assert step(case, experts).routing / (tokens * block) == pytest.approx(want, rel=1e-3)
        assert want == pytest.approx(1 / 6 + experts / (6 * d), rel=0.05)


def test_equation_35_the_highest_moment() -> None:
    for experts in EXPERTS:
        found = step(CASE, experts)
        together = found.parameters + found.gradients + found.optimizer + found.activations + found.routing
        logits = 4 * CASE.tokens * characters(CASE)
        assert found.step_peak == pytest.approx(together + found.buffers + logits, rel=2e-3)
    wide = replace(CASE, batch=64, layers=2)
    late = measured(wide, dense(wide, times=8)(0), "cpu")
    early = late.parameters + late.gradients + late.optimizer + late.activations + 4 * wide.tokens * characters(wide)
    hidden = 2 * 4 * wide.tokens * 8 * wide.hidden
    assert early < late.step_peak < early + hidden
