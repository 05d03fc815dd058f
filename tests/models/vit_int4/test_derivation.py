"""The equations of docs/derivations/quantization.md on levels, straight-through gradients and learned steps.

The quantisers are the track's own, in float64, where torch does both passes, and in float32, where C++ does.
"""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import math
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor, nn
from torch.nn import functional as F

from archbench.models.vit_int4._quantiser import ActivationQuantiser, FakeQuantise, WeightQuantiser

DTYPES = {torch.float64: 1e-12, torch.float32: 2e-5}  # with what sums in it may be off by, relatively
LEVELS = (-8.0, 7.0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(got: Tensor, want: Tensor, tolerance: float = 1e-10) -> None:
    assert got.shape == want.shape
    assert torch.linalg.norm(got.double() - want.double()) <= tolerance * torch.linalg.norm(want.double())


def activations(dtype: torch.dtype) -> tuple[ActivationQuantiser, Tensor]:
    """A quantiser of 4 bits and inputs (13, 50) on both sides of its range and within it."""
    quantiser = ActivationQuantiser(4)
    with torch.no_grad():
        quantiser.log_step.fill_(math.log(0.17))
        quantiser.zero.fill_(3.3)
    return quantiser.to(dtype), draw(13, 50).to(dtype)


def place(quantiser: ActivationQuantiser, x: Tensor) -> Tensor:
    """u of equation (1)."""
    return (x / quantiser.step + quantiser.zero).detach()


def staircase(u: Tensor) -> Tensor:
    return u.clamp(*LEVELS).round()


def over_noise(u: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean of ``of(u + noise)``, noise uniform over one step: exact where the level changes once, at a point of
    the grid of 4096 places."""
    noise = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096 - 0.5
    return of(u[:, None] + noise).mean(1)


def test_equation_1_levels() -> None:
    for dtype, tolerance in DTYPES.items():
        quantiser, x = activations(dtype)
        n = place(quantiser, x).round().clamp(0, 15)
        assert (n.min(), n.max(), len(n.unique())) == (0, 15, 16)
        same(quantiser(x), quantiser.step * (n - quantiser.zero), tolerance)
        weights = WeightQuantiser(x, 4).to(dtype)
        codes = (x / weights.step).round().clamp(*LEVELS)
        assert torch.equal(weights.codes(x).to(dtype), codes)
        assert (codes.min(), codes.max()) == (-8, 7)
        same(weights(x), weights.step * codes, tolerance)


def test_equation_2_a_step_stays_positive() -> None:
    x, dy, rate = draw(5, 40), draw(5, 40, seed=1), 3.0
    quantiser = WeightQuantiser(x, 4).double()
    quantiser.scale = 1.0
    before = quantiser.step
    (quantiser(x) * dy).sum().backward()
    by_step = before.clone().requires_grad_()
    (FakeQuantise.apply(x, by_step, None, *LEVELS, 1.0) * dy).sum().backward()
    g = quantiser.log_step.grad
    assert g is not None
    assert by_step.grad is not None
    same(g, (before * by_step.grad)[:, 0])
    with torch.no_grad():
        quantiser.log_step -= rate * g
    same(quantiser.step, before * torch.exp(-rate * g)[:, None])
    assert (before - rate * by_step.grad).min() < 0 < quantiser.step.min(), "a step itself would not have stayed so"


def test_equation_3_rounding_with_noise_is_right_on_average() -> None:
    u = torch.arange(-12 * 256, 12 * 256, dtype=torch.float64) / 256
    assert torch.equal(over_noise(u, staircase), u.clamp(*LEVELS))


def test_equation_4_a_smoothed_staircase() -> None:
    u = torch.linspace(-3, 3, 601, dtype=torch.float64).requires_grad_()
    for tau in (0.3, 0.5, 1.0):
        k = torch.arange(-30.0, 31.0, dtype=torch.float64)
        normal = torch.distributions.Normal(0.0, 1.0)
        # round(v) counts the thresholds k + 1/2 below v; its mean is the sum of their probabilities.
        mean = normal.cdf((u[:, None] - k - 0.5) / tau).sum(1) - 30.0
        (slope,) = torch.autograd.grad(mean.sum(), u)
        same(slope, (normal.log_prob((k + 0.5 - u[:, None]) / tau).exp() / tau).sum(1).detach())
        j = torch.arange(1.0, 12.0, dtype=torch.float64)
        waves = (-1) ** j * torch.exp(-2 * (math.pi * j * tau) ** 2) * torch.cos(2 * math.pi * j * u.detach()[:, None])
        same(slope, 1 + 2 * waves.sum(1))
        ripple = float((slope - 1).abs().max())
        assert ripple == pytest.approx({0.3: 0.338, 0.5: 0.0144, 1.0: 5.4e-9}[tau], rel=0.02)


def test_equation_5_the_straight_through_estimator() -> None:
    for dtype in DTYPES:
        quantiser, x = activations(dtype)
        u = place(quantiser, x)
        x.requires_grad_()
        (dx,) = torch.autograd.grad(quantiser(x).sum(), x)
        assert torch.equal(dx, ((u >= 0) & (u <= 15)).to(dtype))
        assert 0 < dx.mean() < 1
    near = torch.tensor([[-8.001, -8.0, 0.2, 7.0, 7.001]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    (dx,) = torch.autograd.grad(FakeQuantise.apply(near, one, None, *LEVELS, 1.0).sum(), near)
    assert dx.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]]


def test_equation_6_the_gradient_of_a_step() -> None:
    for dtype, tolerance in DTYPES.items():
        quantiser, x = activations(dtype)
        dy, u = draw(13, 50, seed=1).to(dtype), place(quantiser, x)
        y = quantiser(x)
        (got,) = torch.autograd.grad((y * dy).sum(), quantiser.log_step)
        inside = ((u >= 0) & (u <= 15)).to(dtype)
        scale = (50 * 15) ** -0.5
        same(got, scale * (dy * (y - inside * x)).sum(), 20 * tolerance)  # terms of both signs
        weights = WeightQuantiser(x, 4).to(dtype)
        y, u = weights(x), x / weights.step
        (got,) = torch.autograd.grad((y * dy).sum(), weights.log_step)
        inside = ((u >= -8) & (u <= 7)).to(dtype)
        same(got, (50 * 7) ** -0.5 * (dy * (y - inside * x)).sum(1), 20 * tolerance)


def test_equation_7_the_gradient_of_a_zero() -> None:
    for dtype, tolerance in DTYPES.items():
        quantiser, x = activations(dtype)
        dy, u = draw(13, 50, seed=1).to(dtype), place(quantiser, x)
        (got,) = torch.autograd.grad((quantiser(x) * dy).sum(), quantiser.zero)
        outside = ((u < 0) | (u > 15)).to(dtype)
        same(got, -((50 * 15) ** -0.5) * quantiser.step.detach() * (dy * outside).sum(), 20 * tolerance)


def test_equation_8_what_learned_steps_descend_to() -> None:
    x = torch.linspace(-6, 6, 800_001, dtype=torch.float64)[None]  # normal, by its density on a fine grid
    p = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * 12 / 800_000

    def error(step: float) -> float:
        y = FakeQuantise.apply(x, torch.tensor([[step]], dtype=torch.float64), None, *LEVELS, 1.0)
        return float((p * (y - x) ** 2).sum())

    def learned(step: float) -> float:
        """Half the derivative by the logarithm of the step that autograd takes through the quantiser."""
        log_step = torch.tensor([[math.log(step)]], dtype=torch.float64, requires_grad=True)
        y = FakeQuantise.apply(x, log_step.exp(), None, *LEVELS, 1.0)
        (found,) = torch.autograd.grad((p * (y - x) ** 2).sum() / 2, log_step)
        return float(found)

    for step in (0.15, 0.25, 0.4, 0.6):
        y = FakeQuantise.apply(x, torch.tensor([[step]], dtype=torch.float64), None, *LEVELS, 1.0)
        inside = (x / step >= LEVELS[0]) & (x / step <= LEVELS[1])
        true = (error(step * math.exp(1e-3)) - error(step * math.exp(-1e-3))) / 4e-3
        term = float((p * inside * (y - x) * x).sum())
        assert learned(step) == pytest.approx(true - term, rel=1e-3, abs=1e-5)
        assert step > 0.3 or abs(term) > 3e-4, "the term is there"
    assert learned(0.15) < 0 < learned(0.6), "values outside ask for a larger step, values inside for a smaller one"
    u = torch.linspace(LEVELS[0], LEVELS[1], 15 * 16 + 1, dtype=torch.float64)
    assert over_noise(u, staircase).sub(u).mul(u).abs().max() < 1e-12, "with noise the last term is 0"


def test_equation_9_the_size_of_a_steps_gradient() -> None:
    count, draws = 384, 1000
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(draws, count, generator=generator)
    dy = torch.randn(draws, count, generator=generator)
    for h in (7.0, 127.0):
        step = 2 * math.sqrt(2 / math.pi) / math.sqrt(h)
        steps = torch.full((draws, 1), step, requires_grad=True)
        w = weights.clone().requires_grad_()
        (FakeQuantise.apply(w, steps, None, -h - 1, h, 1.0) * dy).sum().backward()
        assert steps.grad is not None
        assert w.grad is not None
        squares = (steps.grad[:, 0] / step) ** 2 / (w.grad.norm(dim=1) / weights.norm(dim=1)) ** 2
        want = count / 12 / step**2
        deviation = float(squares.std()) / math.sqrt(draws)
        assert float(squares.mean()) == pytest.approx(want, abs=4 * deviation)
        assert 4 * deviation < 0.2 * want
        assert math.sqrt(want) == pytest.approx(0.18 * math.sqrt(count * h), rel=0.01)


def test_equation_10_adamw_hardly_sees_a_factor() -> None:
    gradients, factor = draw(12, 30), 0.013

    def updated(gradients: Tensor, epsilon: float) -> Tensor:
        parameter = nn.Parameter(torch.zeros(30, dtype=torch.float64))
        optimizer = torch.optim.AdamW([parameter], lr=1e-3, eps=epsilon, weight_decay=0.0)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        return parameter.detach()

    for epsilon in (1e-8, 0.1):
        same(updated(factor * gradients, epsilon), updated(gradients, epsilon / factor))
    same(updated(factor * gradients, 1e-8), updated(gradients, 1e-8), 1e-5)
    small = F.normalize(gradients) * 1e-8
    assert (updated(factor * small, 1e-8).abs() < 0.5 * updated(small, 1e-8).abs()).any()
