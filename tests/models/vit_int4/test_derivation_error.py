"""The equations of docs/derivations/quantization.md on the error of rounding and clipping, and on ranges.

Integrals over a density are sums over a fine grid of it; what is drawn is judged by its own standard error.
"""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.models.vit_int4._quantiser import WeightQuantiser
from archbench.models.vit_int4._ranges import weight_steps

GRID = np.linspace(-24.0, 24.0, 480_001)  # in deviations
WIDTH = GRID[1] - GRID[0]
BETA = math.sqrt(0.5)  # of Laplace's density with deviation 1
DENSITIES = {
    "normal": np.exp(-(GRID**2) / 2) / math.sqrt(2 * math.pi),
    "laplace": np.exp(-np.abs(GRID) / BETA) / (2 * BETA),
}
BEST = {  # of the page's table: step, highest level, share of the variance, decibels
    ("normal", 4): (0.339, 2.37, 0.0119, 19.3),
    ("normal", 8): (0.0308, 3.91, 0.000088, 40.6),
    ("laplace", 4): (0.466, 3.26, 0.025, 16.0),
    ("laplace", 8): (0.0549, 6.97, 0.00030, 35.2),
}


def upper_tail(x: float) -> float:
    return math.erfc(x / math.sqrt(2)) / 2


def phi(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def tail(density: str, n: int, step: float) -> tuple[float, float]:
    """Equation (18) or (19), and the probability to be there."""
    c = (n + 0.5) * step
    if density == "normal":
        return (1 + (n * step) ** 2) * upper_tail(c) + (c - 2 * n * step) * phi(c), upper_tail(c)
    beyond = math.exp(-c / BETA)
    return (BETA**2 + BETA * step / 2 + step**2 / 8) * beyond, beyond / 2


def by_formula(density: str, bits: int, step: float) -> float:
    """Equation (20)."""
    (above, often), (below, seldom) = (tail(density, n, step) for n in (2 ** (bits - 1) - 1, 2 ** (bits - 1)))
    return step**2 / 12 * (1 - often - seldom) + above + below


def by_integral(density: str, bits: int, step: float) -> float:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    off = np.rint(GRID / step).clip(low, high) * step - GRID
    return float((DENSITIES[density] * off**2).sum() * WIDTH)


def least(error: Any, bits: int, density: str) -> float:
    """The step where ``error`` is least, to a thousandth."""
    steps = np.geomspace(3 / 2**bits, 18 / 2**bits, 1800)
    return float(steps[np.argmin([error(density, bits, step) for step in steps])])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_equation_16_a_uniform_place() -> None:
    x = torch.arange(-7.5, 7.0, 1 / 512, dtype=torch.float64)[None] + 1 / 1024  # every place of every cell
    quantiser = WeightQuantiser(x, 4).double()
    with torch.no_grad():
        quantiser.log_step.fill_(0.0)
        assert float((quantiser(x) - x).square().mean()) == pytest.approx(1 / 12, rel=1e-5)


def test_equation_17_a_normal_place() -> None:
    for step in (0.3, 1.0, 1.5, 2.0, 4.0):
        off = np.rint(GRID / step) * step - GRID
        found = float((DENSITIES["normal"] * off**2).sum() * WIDTH)
        j = np.arange(1, 60)
        waves = ((-1.0) ** j / j**2 * np.exp(-2 * (np.pi * j / step) ** 2)).sum()
        assert found == pytest.approx(step**2 / 12 + step**2 / np.pi**2 * waves, rel=1e-6)
        assert (abs(12 / np.pi**2 * waves) < 1e-8) == (step <= 1.0)


def test_equation_18_clipping_a_normal_tail() -> None:
    for n, step in ((7, 0.2), (7, 0.4), (8, 0.35), (127, 0.02)):
        beyond = (n + 0.5) * step <= GRID
        found = (DENSITIES["normal"] * beyond * (GRID - n * step) ** 2).sum() * WIDTH
        assert tail("normal", n, step)[0] == pytest.approx(float(found), rel=1e-3)


def test_equation_19_clipping_a_laplace_tail() -> None:
    for n, step in ((7, 0.2), (7, 0.5), (8, 0.45), (127, 0.05)):
        beyond = (n + 0.5) * step <= GRID
        found = (DENSITIES["laplace"] * beyond * (GRID - n * step) ** 2).sum() * WIDTH
        assert tail("laplace", n, step)[0] == pytest.approx(float(found), rel=1e-3)


@pytest.mark.parametrize(("density", "bits"), BEST)
def test_equation_20_rounding_and_clipping(density: str, bits: int) -> None:
    step, end, share, decibels = BEST[density, bits]
    for factor in (0.5, 1.0, 2.0):
        # A cell of Laplace's density is not quite uniform: the first wave of its own equation (17).
        wave = 12 / math.pi**2 / (1 + (2 * math.pi * BETA / (step * factor)) ** 2) if density == "laplace" else 0.0
        found = by_integral(density, bits, step * factor)
        assert by_formula(density, bits, step * factor) == pytest.approx(found, rel=0.003 + 1.1 * wave)
    best = least(by_formula, bits, density)
    error = by_integral(density, bits, best)
    assert best == pytest.approx(step, rel=0.003)
    assert best * (2 ** (bits - 1) - 1) == pytest.approx(end, rel=0.003)
    assert error == pytest.approx(share, rel=0.015)
    assert -10 * math.log10(error) == pytest.approx(decibels, abs=0.06)
    assert error < min(by_integral(density, bits, best * factor) for factor in (0.9, 1.1))
    x = normal(4, 8192)
    if density == "laplace":
        x = x.sign() * -torch.log(2 * torch.special.ndtr(-x.abs())) * BETA  # the same quantiles of the other density
    for ranges, allowed in (("least_squares", 1.0), ("rows", math.inf)):
        low, high = -float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)
        steps = weight_steps(x, low, high, ranges)
        squares = ((x / steps).clamp(low, high).round() * steps - x).square()
        deviation = float(squares.std()) / math.sqrt(squares.numel())
        # The tried ranges are 2.5 % of the largest magnitude apart: near the least, which is flat, that costs 3 %.
        assert float(squares.mean()) <= allowed * (1.03 * error + 4 * deviation)
        if bits == 4:  # at 8 bits the best range is about that of the sample, which nothing exceeds
            assert float(squares.mean()) >= {"least_squares": 0.97, "rows": 1.8}[ranges] * error - 4 * deviation


def test_equation_21_six_decibels_a_bit() -> None:
    assert 20 * math.log10(2) == pytest.approx(6.02, abs=0.001)
    for bits in (4, 6, 8):
        for times in (1.0, 2.0, 4.0):
            x = torch.rand(1, 40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)) * 2 - 1
            end = times * float(x.abs().max())
            quantiser = WeightQuantiser(x, bits).double()
            with torch.no_grad():
                quantiser.log_step.fill_(math.log(end / 2 ** (bits - 1)))
                squares = (quantiser(x) - x).square()
            inside = x.abs() < end * (1 - 2**-bits)  # the highest level is a step short of the end
            found = 10 * math.log10(float(x.square().mean() / squares[inside].mean()))
            omega = float(x.square().mean().sqrt())
            want = 20 * bits * math.log10(2) + 10 * math.log10(3) - 20 * math.log10(end / omega)
            assert found == pytest.approx(want, abs=0.15)  # 40,000 squares: 0.45 % is 0.02 dB; cells are few at 4 x


def test_equation_22_the_largest_of_many() -> None:
    for n, rows, said in ((384, 400, 3.6), (384 * 1536, 12, 5.3)):
        largest = normal(rows, n).abs().amax(1)
        bound = math.sqrt(2 * math.log(2 * n))
        assert bound == pytest.approx(said, abs=0.05)
        deviation = float(largest.std()) / math.sqrt(rows)
        assert 0.85 * bound < float(largest.mean()) <= bound + 4 * deviation


def test_equation_23_a_step_for_each_row() -> None:
    spread = torch.exp(normal(96, 1, seed=1))
    x = normal(96, 2048) * spread
    x[:, 0] = 4.6 * spread[:, 0]  # of each row the largest, and no clipping below
    errors = {}
    for ranges in ("minmax", "rows"):
        steps = weight_steps(x, -128.0, 127.0, ranges)
        errors[ranges] = ((x / steps).round() * steps - x).square()
    ends = x.abs().amax(1)
    want = float(ends.max() ** 2 / ends.square().mean())
    assert want > 5
    # Row-wise, the largest rows make nearly all of the error: it has the spread of a few thousand squares.
    assert float(errors["minmax"].mean() / errors["rows"].mean()) == pytest.approx(want, rel=0.06)
