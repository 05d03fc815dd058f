"""The equations of docs/derivations/norm.md on weights before a norm, in float64, against autograd."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor
from torch.autograd.functional import jacobian

M, INPUTS = 12, 6  # elements of a set, and length of the weight that makes them
EPSILON = 0.3


def draw(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(got: Any, want: Any) -> None:
    got, want = (torch.as_tensor(side, dtype=torch.float64) for side in (got, want))
    assert got.shape == want.shape
    assert torch.linalg.norm(got - want) <= 1e-10 * torch.linalg.norm(want)


def normalized(x: Tensor, epsilon: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + epsilon).sqrt()


WEIGHT = draw(INPUTS, seed=7)


def loss(w: Tensor, epsilon: float = 0.0) -> Tensor:
    """Any scalar behind a norm of what the weight makes of M inputs."""
    return (normalized(draw(M, INPUTS, seed=8) @ w, epsilon) - draw(M, seed=9)).pow(4).sum()


def slope(w: Tensor) -> Tensor:
    return jacobian(loss, w)


def test_equation_37_length_of_a_weight_does_not_matter() -> None:
    for alpha in (0.01, 30.0):
        same(loss(alpha * WEIGHT), loss(WEIGHT))


def test_equation_38_gradient_is_orthogonal_to_the_weight() -> None:
    assert (WEIGHT @ slope(WEIGHT)).abs() <= 1e-10 * WEIGHT.norm() * slope(WEIGHT).norm()


def test_equation_39_what_epsilon_leaves_along_the_weight() -> None:
    gamma = torch.tensor(1.4, dtype=torch.float64)
    z = draw(M, INPUTS, seed=8) @ WEIGHT

    def scaled(w: Tensor, scale: Tensor) -> Tensor:
        return (scale * normalized(draw(M, INPUTS, seed=8) @ w, EPSILON) - draw(M, seed=9)).pow(4).sum()

    dw, dgamma = jacobian(scaled, (WEIGHT, gamma))
    same(WEIGHT @ dw, EPSILON / (z.var(correction=0) + EPSILON) * gamma * dgamma)


def test_equation_40_longer_weights_get_shorter_gradients() -> None:
    for alpha in (0.01, 30.0):
        same(slope(alpha * WEIGHT), slope(WEIGHT) / alpha)


def test_equation_41_weights_grow() -> None:
    eta = 0.02
    step = WEIGHT - eta * slope(WEIGHT)
    same(step.norm() ** 2, WEIGHT.norm() ** 2 + eta**2 * slope(WEIGHT).norm() ** 2)


def test_equation_42_effective_learning_rate() -> None:
    eta, u = 0.02, WEIGHT / WEIGHT.norm()
    step = WEIGHT - eta * slope(WEIGHT)
    eta_e = eta / WEIGHT.norm() ** 2
    same(step / step.norm(), (u - eta_e * slope(u)) / (1 + eta_e**2 * slope(u).norm() ** 2).sqrt())


def test_equation_43_fourth_power_of_the_length() -> None:
    eta, h = 0.02, slope(WEIGHT / WEIGHT.norm()).norm()
    fourth = (WEIGHT - eta * slope(WEIGHT)).norm() ** 4
    same(fourth, WEIGHT.norm() ** 4 + 2 * eta**2 * h**2 + eta**4 * h**4 / WEIGHT.norm() ** 4)


def decayed(w: Tensor, eta: float, decay: float) -> Tensor:
    return (1 - eta * decay) * w - eta * slope(w)


def test_equation_44_growth_and_decay() -> None:
    eta, decay = 0.02, 1.5
    h = slope(WEIGHT / WEIGHT.norm()).norm()
    want = (1 - eta * decay) ** 2 * WEIGHT.norm() ** 2 + eta**2 * h**2 / WEIGHT.norm() ** 2
    same(decayed(WEIGHT, eta, decay).norm() ** 2, want)


def balanced(eta: float, decay: float) -> Tensor:
    u = WEIGHT / WEIGHT.norm()
    return u * (eta * slope(u).norm() ** 2 / (decay * (2 - eta * decay))) ** 0.25


def test_equation_45_length_in_balance() -> None:
    for eta, decay in ((0.02, 1.5), (0.5, 0.1)):
        w = balanced(eta, decay)
        same(decayed(w, eta, decay).norm(), w.norm())


def test_equation_46_angle_of_a_step_in_balance() -> None:
    for eta, decay in ((0.02, 1.5), (0.5, 0.1)):
        w = balanced(eta, decay)
        step = decayed(w, eta, decay)
        cosine = w @ step / (w.norm() * step.norm())
        same(cosine, 1 - eta * decay)
        same((1 - cosine**2).sqrt(), math.sqrt(eta * decay * (2 - eta * decay)))
