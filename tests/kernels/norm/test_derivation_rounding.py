"""The equations of docs/derivations/norm.md on rounding and on passes over memory, in float64 and by counting."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor

from archbench.kernels.norm import NormCase

M = 24  # elements of a set
EPSILON = 1e-5
State = tuple[int, Tensor, Tensor]  # count, mean, sum of squared deviations


def draw(*shape: int, seed: int = 0) -> Any:
    return 3 + 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(got: Any, want: Any) -> None:
    got, want = (torch.as_tensor(side, dtype=torch.float64) for side in (got, want))
    assert got.shape == want.shape
    assert torch.linalg.norm(got - want) <= 1e-10 * torch.linalg.norm(want)


def variance(x: Tensor) -> Tensor:
    return x.var(correction=0)


def kappa(x: Tensor) -> Tensor:
    return (1 + x.mean() ** 2 / variance(x)).sqrt()


def shifted(x: Tensor, k: Tensor) -> Tensor:
    """The variance by equation (56), in the arithmetic of ``x``."""
    return (x - k).square().mean() - (x - k).mean().square()


def offset(mean: float, dtype: torch.dtype) -> Tensor:
    """Many numbers that ``dtype`` holds exactly, with the mean and a deviation near 1."""
    x = (mean + torch.randn(4096, generator=torch.Generator().manual_seed(1)).double()).float()
    return x.to(dtype)


def test_equation_54_what_rounding_the_input_costs() -> None:
    upsilon = 2.0**-24
    for seed in range(20):
        x = draw(M, seed=seed)
        worst = 2 / M * ((x - x.mean()) * x).abs().sum() * upsilon  # to first order: signs chosen against us
        assert worst / variance(x) <= 2 * kappa(x) * upsilon * (1 + 1e-12)
    # Two values, far from zero: the bound is met.
    x = 1e4 + torch.tensor([-1.0, 1.0], dtype=torch.float64)
    same(((x - x.mean()) * x).abs().sum() / variance(x), 2 * kappa(x) / (1 + 1e-8) ** 0.5)


def test_equation_55_what_the_textbook_formula_subtracts() -> None:
    x = draw(M)
    same(x.square().mean() / variance(x), kappa(x) ** 2)
    for mean in (1e3, 4096.0):
        lost = variance(offset(mean, torch.float64)) * kappa(offset(mean, torch.float64)) ** 2 * 2.0**-24
        error = shifted(offset(mean, torch.float32), torch.tensor(0.0)) - variance(offset(mean, torch.float64))
        assert error.abs() < 4 * lost
    assert kappa(offset(1e3, torch.float64)) ** 2 * 2.0**-24 == pytest.approx(0.06, rel=0.1)
    assert kappa(offset(4096.0, torch.float64)) ** 2 * 2.0**-24 == pytest.approx(1, rel=0.1)


def test_equation_56_shifted_variance() -> None:
    x = draw(M)
    for k in (0.0, 2.5, -7.0):
        same(shifted(x, torch.tensor(k)), variance(x))


def test_equation_57_amplification_after_a_shift() -> None:
    x = draw(M)
    same((x - 2.5).square().mean() / variance(x), 1 + (x.mean() - 2.5) ** 2 / variance(x))
    far, exact = offset(1e4, torch.float32), variance(offset(1e4, torch.float64))
    assert (shifted(far, far[0]) / exact - 1).abs() < 1e-5
    assert (shifted(far, torch.tensor(0.0)) / exact - 1).abs() > 0.1


def test_equation_58_any_element_is_a_good_shift() -> None:
    x = draw(M)
    same((1 + (x.mean() - x) ** 2 / variance(x)).mean(), 2.0)


def state_of(x: Tensor) -> State:
    return len(x), x.mean(), (x - x.mean()).square().sum()


def merge(a: State, b: State) -> State:
    n, delta = a[0] + b[0], b[1] - a[1]
    return n, a[1] + b[0] / n * delta, a[2] + b[2] + a[0] * b[0] / n * delta**2


def same_state(got: State, want: State) -> None:
    assert got[0] == want[0]
    same(got[1], want[1])
    same(got[2], want[2])


def test_equation_59_running_mean_of_welford() -> None:
    x, mean = draw(M), torch.tensor(0.0)
    for n in range(1, M + 1):
        mean = mean + (x[n - 1] - mean) / n
        same(mean, x[:n].mean())


def test_equation_60_running_squares_of_welford() -> None:
    x, squares = draw(M), torch.tensor(0.0)
    for n in range(2, M + 1):
        squares = squares + (x[n - 1] - x[: n - 1].mean()) * (x[n - 1] - x[:n].mean())
        same(squares, n * variance(x[:n]))


def test_equation_61_mean_of_two_parts() -> None:
    x = draw(M)
    same(merge(state_of(x[:5]), state_of(x[5:]))[1], x.mean())


def test_equation_62_squares_of_two_parts() -> None:
    x = draw(M)
    same(merge(state_of(x[:5]), state_of(x[5:]))[2], M * variance(x))
    one: State = (1, x[5], torch.tensor(0.0))  # Welford's step
    same(merge(state_of(x[:5]), one)[2], 6 * variance(x[:6]))


def test_equation_63_merges_add() -> None:
    states = [state_of(draw(n, seed=n)) for n in (3, 4, 9)]
    a, b, c = states
    n, mean, squares = merge(a, b)
    same(n * mean, a[0] * a[1] + b[0] * b[1])
    same(squares + n * mean**2, a[2] + a[0] * a[1] ** 2 + b[2] + b[0] * b[1] ** 2)
    same_state(merge(a, b), merge(b, a))
    same_state(merge(merge(a, b), c), merge(a, merge(b, c)))


def test_equation_64_within_and_between_parts() -> None:
    x = draw(M)
    parts = [state_of(part) for part in x.split([3, 4, 9, 8])]
    within, between = sum(squares for _, _, squares in parts), sum(n * (mean - x.mean()) ** 2 for n, mean, _ in parts)
    same(within + between, M * variance(x))
    assert between > 0.01 * within


def test_equation_65_two_ways_to_the_gradient_of_the_scale() -> None:
    x, dy = draw(M), draw(M, seed=1)
    r = (variance(x) + EPSILON).rsqrt()
    same(r * ((dy * x).sum() - x.mean() * dy.sum()), (dy * (x - x.mean()) * r).sum())


class Memory:
    """Counts elements that move between the arithmetic and memory."""

    def __init__(self) -> None:
        self.moved = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        self.moved += tensor.numel()
        return tensor


def forward(rows: Tensor, memory: Memory, on_chip: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows are sets. What is kept on the chip is not read again; statistics are too few to count."""
    again = memory if not on_chip else (lambda tensor: tensor)
    mean = memory(rows).mean(-1, keepdim=True)
    r = (rows.var(-1, correction=0, keepdim=True) + EPSILON).rsqrt()
    return memory(r * (again(rows) - mean)), mean, r


def backward(rows: Tensor, dy: Tensor, mean: Tensor, r: Tensor, memory: Memory, on_chip: bool) -> Tensor:
    again = memory if not on_chip else (lambda tensor: tensor)
    g, xhat = memory(dy), r * (memory(rows) - mean)
    dbeta, dgamma = g.mean(-1, keepdim=True), (g * xhat).mean(-1, keepdim=True)
    return memory(r * (again(dy) - dbeta - r * (again(rows) - mean) * dgamma))


def passes(on_chip: bool) -> tuple[int, int]:
    """Elements moved by the forward and by both, over the elements of x."""
    rows, dy, memory = draw(3, M).requires_grad_(), draw(3, M, seed=1), Memory()
    y, mean, r = forward(rows, memory, on_chip)
    once = memory.moved
    (want,) = torch.autograd.grad(y, rows, dy)
    same(backward(rows.detach(), dy, mean.detach(), r.detach(), memory, on_chip), want)
    return once // rows.numel(), memory.moved // rows.numel()


def test_equation_13_what_must_be_moved() -> None:
    assert passes(on_chip=True) == (2, 5)
    for backward, moved in ((False, 2), (True, 5)):
        case = NormCase("layer", (2, 3, M), dtype="bf16", backward=backward)
        assert case.bytes_moved() == moved * (2 * 3 * M) * 2


def test_equation_66_passes_of_sets_that_do_not_fit() -> None:
    assert passes(on_chip=False) == (3, 8)
