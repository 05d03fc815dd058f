"""Rounding to few levels: both implementations against the definition and against each other."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from archbench.models.vit_int4 import _quantiser
from archbench.models.vit_int4._quantiser import ActivationQuantiser, FakeQuantise, WeightQuantiser


def values(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))) * 2


def asked(
    x: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None, low: float, high: float
) -> list[torch.Tensor]:
    """y, and the gradients of a weighted sum of it by x, step and offset."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, step) if tensor is not None]
    shift = None if offset is None else offset.clone().requires_grad_()
    y = FakeQuantise.apply(*leaves, shift, low, high, 0.5)
    weights = torch.arange(y.numel(), dtype=torch.float32).view_as(y).sin()
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [*leaves, *([shift] if shift is not None else [])])]


ROWS = (values(64, 33), torch.linspace(0.1, 1.0, 64)[:, None], None, -8.0, 7.0)
TENSOR = (values(7, 5, 33), torch.tensor(0.2), torch.tensor(-1.0), 0.0, 15.0)


@pytest.mark.parametrize("given", [ROWS, TENSOR], ids=["rows", "tensor"])
def test_both_ways_of_computing_agree(given: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    if _quantiser.library() is None:
        pytest.skip("no C++ compiler here: there is only one way")
    native = asked(*given)
    monkeypatch.setattr(_quantiser, "library", lambda: None)
    for found, expected in zip(native, asked(*given), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("given", [ROWS, TENSOR], ids=["rows", "tensor"])
def test_gradients_are_those_of_the_definition(given: tuple) -> None:
    """Inside the levels x's is passed and the step's is level - x / step; outside they are 0 and the bound."""
    x, step, offset, low, high = given
    y, dx, dstep, *doffset = asked(*given)
    weights = torch.arange(y.numel(), dtype=torch.float64).view_as(y).sin()
    shift = 0.0 if offset is None else offset.double()
    level = (x.double() - shift) / step.double()
    inside = (level >= low) & (level <= high)
    torch.testing.assert_close(dx.double(), weights * inside, rtol=1e-5, atol=1e-5)
    slope = torch.where(inside, level.round() - level, level.clamp(low, high))
    wanted = 0.5 * (weights * slope)
    wanted = wanted.sum(1, keepdim=True) if step.dim() else wanted.sum()
    torch.testing.assert_close(dstep.double(), wanted, rtol=1e-3, atol=1e-3)
    if doffset:
        torch.testing.assert_close(doffset[0].double(), 0.5 * (weights * ~inside).sum(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_more_levels_than_bits_allow(bits: int) -> None:
    weight = values(5, 64)
    assert max(len(row.unique()) for row in WeightQuantiser(weight, bits)(weight).detach()) <= 2**bits
    activations = ActivationQuantiser(bits)
    activations.observe(values(1000))
    assert len(activations(values(1000) * 3).detach().unique()) <= 2**bits


def test_codes_times_steps_are_the_rounded_weights() -> None:
    weight = values(6, 64)
    quantiser = WeightQuantiser(weight, 4, group=16)
    codes = quantiser.codes(weight)
    assert codes.dtype is torch.int8
    assert int(codes.min()) >= -8
    assert int(codes.max()) <= 7
    dense = (codes.float().view(-1, 16) * quantiser.step).view_as(weight)
    torch.testing.assert_close(dense, quantiser(weight).detach(), rtol=1e-6, atol=0)


def test_groups_have_steps_of_their_own() -> None:
    weight = torch.cat((values(4, 16), 100 * values(4, 16)), dim=1)
    together, apart = (WeightQuantiser(weight, 4, group)(weight).detach() for group in (0, 16))
    small = slice(0, 16)
    assert float((apart - weight)[:, small].abs().mean()) < 0.2 < float((together - weight)[:, small].abs().mean())


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of 32 do not divide 48 inputs"):
        WeightQuantiser(values(4, 48), 4, 32)


@pytest.mark.parametrize("ranges", ["absmax", "minmax", "rows", "least_squares"])
def test_zero_stays_zero_after_an_activation_without_negatives(ranges: str) -> None:
    quantiser = ActivationQuantiser(4, ranges)
    quantiser.observe(values(4096).relu())
    assert float(quantiser(torch.zeros(3)).detach().abs().max()) == 0.0


def test_least_squares_beats_the_whole_range() -> None:
    x = torch.cat((values(10_000), torch.tensor([40.0])))
    errors = {}
    for ranges in ("minmax", "least_squares"):
        quantiser = ActivationQuantiser(4, ranges)
        quantiser.observe(x)
        errors[ranges] = float((quantiser(x).detach() - x).square().mean())
    assert errors["least_squares"] < errors["minmax"] / 2


def test_a_step_learns_towards_the_least_error() -> None:
    """Gradient descent on the squared error from a step four times too large."""
    x = values(4096)
    best = ActivationQuantiser(4)
    best.observe(x)
    learner = ActivationQuantiser(4)
    learner.observe(x)
    with torch.no_grad():
        learner.log_step += 4.0**0.5
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
    first = float((learner(x) - x).square().mean().detach())
    for _ in range(300):
        optimizer.zero_grad()
        error = (learner(x) - x).square().mean()
        error.backward()
        optimizer.step()
    assert float(error.detach()) < 1.2 * float((best(x) - x).square().mean().detach()) < first


def test_a_table_of_gelu_is_gelu_of_the_rounded() -> None:
    if _quantiser.library() is None:
        pytest.skip("no C++ compiler here: there is no table")
    quantiser = ActivationQuantiser(4)
    x = values(6, 7, 32)
    quantiser.observe(x[:3])  # what follows is clipped in part
    found = []
    for function in (
        lambda given: quantiser(given, gelu=True),
        lambda given: torch.nn.functional.gelu(quantiser(given)),
    ):
        leaf = x.clone().requires_grad_()
        quantiser.zero_grad()
        y = function(leaf)
        (y * torch.arange(y.numel()).view_as(y).sin()).sum().backward()
        found.append([y.detach(), leaf.grad, quantiser.log_step.grad, quantiser.zero.grad])
    for table, definition in zip(*found, strict=True):
        torch.testing.assert_close(table, definition, rtol=1e-4, atol=1e-4)


def test_extremes_are_widened_and_least_squares_kept() -> None:
    for ranges, widened in (("absmax", True), ("minmax", True), ("least_squares", False)):
        quantiser = ActivationQuantiser(4, ranges)
        quantiser.observing = "set"
        quantiser.observe(values(100))
        before = float(quantiser.step.detach())
        quantiser.observing = "widen"
        quantiser.observe(values(100) * 3)
        quantiser.observe(values(100))
        assert (float(quantiser.step.detach()) > 2 * before) == widened


@pytest.mark.parametrize("ranges", ["absmax", "minmax"])
def test_multiples_of_a_number_do_not_lie_between_two_levels(ranges: str) -> None:
    """What a product of rounded operands may be: with the largest at a level, every seventh would be at a half."""
    x = torch.arange(-56, 57) * 0.0938104
    quantiser = ActivationQuantiser(4, ranges)
    quantiser.observe(x)
    levels = (x - quantiser.offset) / quantiser.step
    assert float(((levels - levels.floor()) - 0.5).abs().min().detach()) > 1e-4


def test_what_is_no_number_stays_so() -> None:
    quantiser = ActivationQuantiser(4)
    x = values(3, 32)
    quantiser.observe(x)
    x[1, 5] = torch.nan
    x.requires_grad_()
    y = quantiser(x, gelu=True)
    assert torch.isnan(y).nonzero().tolist() == [[1, 5]]
    y.nansum().backward()
