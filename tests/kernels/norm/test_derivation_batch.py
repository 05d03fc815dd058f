"""The equations of docs/derivations/norm.md on batches and running statistics, in float64.

Expectations are taken over all outcomes of small distributions, not sampled.
"""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

import torch.nn.functional as F
from torch import Tensor
from torch.autograd.functional import jacobian

N, C, H, W = 3, 4, 2, 5  # the letters of the page
M = 12  # elements of a set
EPSILON = 0.3
VALUES = torch.tensor([-1.0, 0.5, 3.0, 4.0], dtype=torch.float64)  # equally likely
MEAN, SIGMA2, KAPPA4 = 1.625, *((VALUES - 1.625).pow(power).mean() for power in (2, 4))


def draw(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(got: Any, want: Any) -> None:
    got, want = (torch.as_tensor(side, dtype=torch.float64) for side in (got, want))
    assert got.shape == want.shape
    assert torch.linalg.norm(got - want) <= 1e-10 * torch.linalg.norm(want)


def variance(outcomes: Tensor) -> Tensor:
    return outcomes.var(0, correction=0)


def all_sets(m: int) -> Tensor:
    """Every set of m independent draws from VALUES, one a row, equally likely."""
    return torch.cartesian_prod(*[VALUES] * m)


def test_equation_26_variance_of_the_mean() -> None:
    for m in (2, 3, 6):
        same(variance(all_sets(m).mean(-1)), SIGMA2 / m)


def test_equation_27_the_variance_is_too_small_on_average() -> None:
    for m in (2, 3, 6):
        same(all_sets(m).var(-1, correction=0).mean(), (m - 1) / m * SIGMA2)


def test_equation_28_variance_of_the_variance() -> None:
    for m in (2, 3, 6):
        v = all_sets(m).var(-1, correction=0)
        same(variance(m / (m - 1) * v), (KAPPA4 - (m - 3) / (m - 1) * SIGMA2**2) / m)


def test_equation_29_pixels_are_alike() -> None:
    images, pixels = 3, 4
    for tau in (0.0, 0.4, 1.0):
        image = SIGMA2 * ((1 - tau) * torch.eye(pixels).double() + tau)
        covariance = torch.block_diag(*[image] * images)
        weights = torch.full((images * pixels,), 1 / (images * pixels), dtype=torch.float64)
        same(weights @ covariance @ weights, SIGMA2 / (images * pixels) * (1 + (pixels - 1) * tau))


def test_equation_30_first_order_of_wrong_statistics() -> None:
    x, sigma, off = draw(M), 1.7, draw(2, seed=1)
    by_shift = jacobian(lambda shift: (x - 0.4 - shift[0]) / (sigma**2 + shift[1]).sqrt(), torch.zeros(2).double())
    same(by_shift @ off, -off[0] / sigma - (x - 0.4) / sigma / 2 * off[1] / sigma**2)


def test_equation_31_noise_of_an_output() -> None:
    u, weight = np.polynomial.hermite_e.hermegauss(20)  # integrals against the normal density
    for z in (0.0, 1.0, -3.0):
        noise = weight @ (u + z / 2 * (u**2 - 1)) ** 2 / weight.sum()
        assert noise == pytest.approx(1 + z**2 / 2, rel=1e-10)
        assert weight @ (u + z / 2 * (u**2 - 1)) == pytest.approx(0, abs=1e-10)


def batch_norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True, eps=EPSILON)


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[1:], eps=EPSILON)


def test_equation_32_examples_see_each_other() -> None:
    x = draw(N, C, H, W)
    r = (x[:, 1].var(correction=0) + EPSILON).rsqrt()
    xhat, seen = batch_norm(x), jacobian(batch_norm, x)
    m = N * H * W
    same(seen[0, 1, :, :, 2, 1], -r / m * (1 + torch.einsum("ij,kl->ijkl", xhat[0, 1], xhat[2, 1])))
    assert not jacobian(layer_norm, x)[0, :, :, :, 2].any()


def test_equation_33_mean_of_gradients_of_examples() -> None:
    x, w, target = draw(N, C, H, W), 1 + 0.1 * draw(C, H, W, seed=1), draw(C, H, W, seed=2)

    def gradient(norm: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        return jacobian(lambda weight: (norm(batch * weight) - target).square().sum() / len(batch), w)

    def alone(norm: Callable[[Tensor], Tensor]) -> Tensor:
        return sum(gradient(norm, example[None]) for example in x) / N

    same(alone(layer_norm), gradient(layer_norm, x))
    assert torch.linalg.norm(alone(batch_norm) - gradient(batch_norm, x)) > 0.1 * torch.linalg.norm(alone(batch_norm))


GRADIENTS = draw(4, 2, seed=5)  # of four examples, equally likely, in two weights
COVARIANCE = GRADIENTS.T.cov(correction=0)


def all_batches(size: int) -> Tensor:
    """The mean gradient of every batch, equally likely."""
    return torch.stack([GRADIENTS[list(batch)].mean(0) for batch in product(range(4), repeat=size)])


def test_equation_34_noise_of_a_step() -> None:
    for size in (1, 2, 5):
        same(all_batches(size).T.cov(correction=0), COVARIANCE / size)


def test_equation_35_squared_length_of_a_gradient() -> None:
    for size in (1, 2, 5):
        squared = all_batches(size).square().sum(-1).mean()
        same(squared, GRADIENTS.mean(0).square().sum() + COVARIANCE.trace() / size)


def test_equation_36_way_and_noise_of_many_steps() -> None:
    examples = 6
    for eta, size in ((0.1, 1), (0.2, 2), (0.3, 3), (0.1, 3)):
        steps = -eta * all_batches(size)
        way = torch.stack([sum(chosen) for chosen in product(steps, repeat=examples // size)])
        same(way.mean(0), -eta * examples / size * GRADIENTS.mean(0))
        same(way.T.cov(correction=0), eta**2 * examples / size**2 * COVARIANCE)


def running(batches: list[Tensor], momentum: float) -> tuple[Tensor, Tensor]:
    """torch's running mean and variance after the batches, from a mean of 1 and a variance of 2."""
    mean, var = torch.ones(C).double(), torch.full((C,), 2.0, dtype=torch.float64)
    for x in batches:
        F.batch_norm(x, mean, var, training=True, momentum=momentum)
    return mean, var


def test_equation_47_running_mean() -> None:
    x = draw(N, C, H, W)
    same(running([x], 0.25)[0], 0.75 * torch.ones(C).double() + 0.25 * x.mean((0, 2, 3)))


def test_equation_48_running_variance() -> None:
    x, m = draw(N, C, H, W), N * H * W
    want = 0.75 * torch.full((C,), 2.0).double() + 0.25 * m / (m - 1) * x.var((0, 2, 3), correction=0)
    same(running([x], 0.25)[1], want)
    with pytest.raises(ValueError, match="more than 1 value"):
        running([draw(1, C, 1, 1)], 0.25)


def test_equation_49_running_mean_unrolled() -> None:
    batches, a = [draw(N, C, H, W, seed=n) for n in range(4)], 0.25
    want = (1 - a) ** 4 * torch.ones(C).double()
    want += a * sum((1 - a) ** (4 - i) * x.mean((0, 2, 3)) for i, x in enumerate(batches, start=1))
    same(running(batches, a)[0], want)


def test_equation_50_variance_of_the_running_mean() -> None:
    for a in (0.1, 0.25, 1.0):
        settled = a / (2 - a)
        same((1 - a) ** 2 * settled + a**2, settled)  # one batch more, of variance 1, changes nothing
        same(a**2 * sum((1 - a) ** (2 * k) for k in range(2000)), settled)
    same(0.1 / (2 - 0.1), 1 / 19)


def evaluated() -> tuple[Tensor, ...]:
    x, gamma, beta, mean, logarithm = (draw(N, C, H, W), *draw(4, C, seed=3))
    return x, gamma, beta, mean, logarithm.exp()


def line(gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    p = gamma / (var + EPSILON).sqrt()
    return p, beta - p * mean


def test_equation_51_evaluation_is_a_line() -> None:
    x, gamma, beta, mean, var = evaluated()
    p, q = line(gamma, beta, mean, var)
    want = F.batch_norm(x, mean, var, gamma, beta, training=False, eps=EPSILON)
    same(p[:, None, None] * x + q[:, None, None], want)


def test_equation_52_gradient_in_evaluation() -> None:
    x, gamma, beta, mean, var = evaluated()
    dy, leaves = draw(N, C, H, W, seed=4), [tensor.clone().requires_grad_() for tensor in (x, gamma, beta)]
    y = F.batch_norm(leaves[0], mean, var, leaves[1], leaves[2], training=False, eps=EPSILON)
    dx, dgamma, dbeta = torch.autograd.grad(y, leaves, dy)
    same(line(gamma, beta, mean, var)[0][:, None, None] * dy, dx)
    xhat = (x - mean[:, None, None]) / (var + EPSILON).sqrt()[:, None, None]
    same((dy * xhat).sum((0, 2, 3)), dgamma)
    same(dy.sum((0, 2, 3)), dbeta)


def test_equation_53_folded_into_the_map_before() -> None:
    x, gamma, beta, mean, var = evaluated()
    weight, bias = draw(C, C, 1, 2, seed=5), draw(C, seed=6)
    want = F.batch_norm(F.conv2d(x, weight, bias), mean, var, gamma, beta, training=False, eps=EPSILON)
    p, q = line(gamma, beta, mean, var)
    same(F.conv2d(x, p[:, None, None, None] * weight, p * bias + q), want)
