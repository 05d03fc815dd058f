"""Every numbered equation of docs/derivations/norm.md, in float64, against torch's norms, autograd or a count.

A test carries the number of its equation in its name. Here are the formula, its sets and its gradients; what batches
do is in ``test_derivation_batch.py``, what becomes of weights in ``test_derivation_weights.py``, rounding and passes in
``test_derivation_rounding.py``.
"""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

import torch.nn.functional as F
from torch import Tensor
from torch.autograd.functional import jacobian

N, C, H, W, G = 3, 6, 4, 5, 2  # the letters of the page
B, T, D = 2, 5, 7
EPSILON = 0.3  # large, so that no test can overlook it


def draw(*shape: int, seed: int = 0) -> Any:
    return 0.5 + 1.5 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert torch.linalg.norm(got - want) <= 1e-10 * torch.linalg.norm(want)


def vanishes(got: Tensor, beside: Tensor) -> None:
    assert got.abs().max() <= 1e-10 * beside.abs().max()


def normalized(x: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Equation (3) for a tensor whose rows are the sets."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()


def by_sets(x: Tensor, gamma: Tensor, beta: Tensor, belongs: Callable[..., bool], channel: int) -> Tensor:
    """The definition, element by element. ``belongs(i, j)``: is j in the set of i. ``channel``: the axis of c(i)."""
    y = torch.empty_like(x)
    places = list(product(*map(range, x.shape)))
    for i in places:
        members = torch.stack([x[j] for j in places if belongs(i, j)])
        mean = members.sum() / len(members)
        variance = (members - mean).square().sum() / len(members)
        y[i] = gamma[i[channel]] * (x[i] - mean) / (variance + EPSILON).sqrt() + beta[i[channel]]
    return y


TORCH_NORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "batch": lambda x, gamma, beta: F.batch_norm(x, None, None, gamma, beta, training=True, eps=EPSILON),
    "instance": lambda x, gamma, beta: F.instance_norm(x, weight=gamma, bias=beta, eps=EPSILON),
    "group": lambda x, gamma, beta: F.group_norm(x, G, gamma, beta, EPSILON),
    "layer": lambda x, gamma, beta: F.layer_norm(x, (x.shape[-1],), gamma, beta, EPSILON),
    "rms": lambda x, gamma, _: F.rms_norm(x, (x.shape[-1],), gamma, EPSILON),
}
# The axes that a set runs over once an image is split [N, G, C / G, H, W] and tokens stay [B, T, D].
SET_AXES = {"batch": (0, 3, 4), "instance": (3, 4), "group": (2, 3, 4), "layer": (2,), "rms": (2,)}


def split(kind: str, tensor: Tensor) -> Tensor:
    return tensor if kind in ("layer", "rms") else tensor.unflatten(1, (G, C // G))


@cache
def norm(kind: str) -> Any:
    """torch's norm with autograd's gradients; statistics and normalized input split by sets, as (1) to (3) read."""
    image = kind not in ("layer", "rms")
    shape, size = ((N, C, H, W), C) if image else ((B, T, D), D)
    x, dy, gamma, beta = draw(*shape), draw(*shape, seed=1), draw(size, seed=2), draw(size, seed=3)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, gamma, beta)]
    y = TORCH_NORMS[kind](*leaves)
    dx, dgamma, dbeta = torch.autograd.grad(y, leaves, dy, materialize_grads=True)
    axes, parts = SET_AXES[kind], split(kind, x)
    mu = torch.zeros(1).double() if kind == "rms" else parts.mean(axes, keepdim=True)
    v = (parts - mu).square().mean(axes, keepdim=True)
    r = (v + EPSILON).rsqrt()
    spread = (slice(None), None, None) if image else ()
    m = parts[(0,) * parts.dim()].numel() * x.numel() // v.numel()
    g = dy * gamma[spread]
    return SimpleNamespace(
        x=x, dy=dy, gamma=gamma, beta=beta, y=y.detach(), dx=dx, dgamma=dgamma, dbeta=dbeta, axes=axes, m=m, mu=mu, v=v,
        r=r, xhat=r * (parts - mu), g=split(kind, g), spread=spread, over=(0, 2, 3) if image else (0, 1),
    )  # fmt: skip


def whole(kind: str, parts: Tensor) -> Tensor:
    return parts if kind in ("layer", "rms") else parts.flatten(1, 2)


def test_equation_1_mean_is_where_squares_are_least() -> None:
    x = draw(D)
    mu = (x.sum() / D).requires_grad_()
    (slope,) = torch.autograd.grad((x - mu).square().sum(), mu)
    vanishes(slope, x)


def test_equation_2_variance_divides_by_m() -> None:
    x = draw(B, D)
    same((x - x.mean(-1, keepdim=True)).square().sum(-1) / D, x.var(-1, correction=0))


def test_equation_3_normalized_input() -> None:
    x = draw(B, T, D)
    r = 1 / (x.var(-1, correction=0, keepdim=True) + EPSILON).sqrt()
    same(r * (x - x.mean(-1, keepdim=True)), F.layer_norm(x, (D,), eps=EPSILON))


def test_equation_4_scale_and_shift() -> None:
    for kind in ("batch", "instance", "group", "layer"):
        a = norm(kind)
        same(a.gamma[a.spread] * whole(kind, a.xhat) + a.beta[a.spread], a.y)


def test_equation_5_mean_and_variance_of_normalized_input() -> None:
    for kind in ("batch", "instance", "group", "layer"):
        a = norm(kind)
        vanishes(a.xhat.mean(a.axes), a.xhat)
        same(a.xhat.square().mean(a.axes, keepdim=True), a.v / (a.v + EPSILON))


def test_equation_6_common_factor_and_shift() -> None:
    x = draw(D)
    for factor, shift in ((3.0, 0.0), (0.2, -40.0)):
        same(normalized(factor * x + shift), normalized(x, EPSILON / factor**2))
    assert not torch.allclose(normalized(3 * x), normalized(x))


def test_equation_7_sets_of_batch_norm() -> None:
    a = norm("batch")
    same(by_sets(a.x, a.gamma, a.beta, lambda i, j: i[1] == j[1], channel=1), a.y)
    assert a.m == N * H * W


def test_equation_8_sets_of_layer_norm() -> None:
    a = norm("layer")
    same(by_sets(a.x, a.gamma, a.beta, lambda i, j: i[:2] == j[:2], channel=2), a.y)
    assert a.m == D


def test_equation_9_sets_of_instance_norm() -> None:
    a = norm("instance")
    same(by_sets(a.x, a.gamma, a.beta, lambda i, j: i[:2] == j[:2], channel=1), a.y)
    assert a.m == H * W


def test_equation_10_sets_of_group_norm() -> None:
    a = norm("group")

    def belongs(i: Any, j: Any) -> bool:
        return bool(i[0] == j[0] and i[1] * G // C == j[1] * G // C)

    same(by_sets(a.x, a.gamma, a.beta, belongs, channel=1), a.y)
    assert a.m == C * H * W // G
    same(F.group_norm(a.x, C, a.gamma, a.beta, EPSILON), norm("instance").y)
    same(F.group_norm(a.x, 1, eps=EPSILON), F.layer_norm(a.x, (C, H, W), eps=EPSILON))


def test_equation_11_rms_norm() -> None:
    a = norm("rms")
    same(a.gamma * a.x / (a.x.square().sum(-1, keepdim=True) / D + EPSILON).sqrt(), a.y)
    centred = a.x - a.x.mean(-1, keepdim=True)
    same(F.rms_norm(centred, (D,), a.gamma, EPSILON), F.layer_norm(a.x, (D,), a.gamma, eps=EPSILON))


def test_equation_12_mean_square() -> None:
    x = draw(T, D)
    same(x.square().mean(-1), x.var(-1, correction=0) + x.mean(-1).square())


def test_equation_14_gradients_of_parameters() -> None:
    for kind in TORCH_NORMS:
        a = norm(kind)
        same((a.dy * whole(kind, a.xhat)).sum(a.over), a.dgamma)
        same(a.dy.sum(a.over) if kind != "rms" else torch.zeros(D).double(), a.dbeta)


def test_equation_15_gradient_of_normalized_input() -> None:
    a = norm("group")
    xhat = whole("group", a.xhat).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(a.gamma[a.spread] * xhat + a.beta[a.spread], xhat, a.dy)
    same(whole("group", a.g), gradient)


def test_equation_16_derivatives_of_statistics() -> None:
    x = draw(D).requires_grad_()
    mu, v = x.mean(), x.var(correction=0)
    r = (v + EPSILON).rsqrt()
    dmu, dv, dr = (torch.autograd.grad(found, x, retain_graph=True)[0] for found in (mu, v, r))
    same(torch.full((D,), 1 / D, dtype=torch.float64), dmu)
    same(2 / D * (x - mu), dv)
    same(-(r**2) / D * normalized(x), dr)


def jacobian_by_formula(x: Tensor, epsilon: float) -> Tensor:
    r, xhat = (x.var(correction=0) + epsilon).rsqrt(), normalized(x, epsilon)
    return r * (torch.eye(len(x)).double() - 1 / len(x) - torch.outer(xhat, xhat) / len(x))


def test_equation_17_jacobian() -> None:
    x = draw(D)
    same(jacobian_by_formula(x, EPSILON), jacobian(normalized, x))
    rows = jacobian(normalized, draw(B, D))
    assert not rows[0, :, 1].any(), "sets see each other"


def test_equation_18_means_are_projections_on_constant_and_normalized() -> None:
    x, g = draw(D), draw(D, seed=1)
    basis = torch.stack((torch.ones(D).double(), normalized(x, 0.0)), dim=1)
    same(torch.stack((g.mean(), (g * basis[:, 1]).mean())), torch.linalg.lstsq(basis, g).solution)


def test_equation_19_gradient_of_input() -> None:
    for kind in ("batch", "instance", "group", "layer"):
        a = norm(kind)
        g_mean, q_mean = a.g.mean(a.axes, keepdim=True), (a.g * a.xhat).mean(a.axes, keepdim=True)
        same(whole(kind, a.r * (a.g - g_mean - a.xhat * q_mean)), a.dx)


def test_equation_20_gradient_of_input_of_rms_norm() -> None:
    a = norm("rms")
    same(a.r * (a.g - a.xhat * (a.g * a.xhat).mean(-1, keepdim=True)), a.dx)


def test_equation_21_gradient_of_input_by_those_of_parameters() -> None:
    a = norm("batch")
    xhat, r = whole("batch", a.xhat), whole("batch", a.r)
    dgamma, dbeta = a.dgamma[a.spread], a.dbeta[a.spread]
    same(a.gamma[a.spread] * r * (a.dy - dbeta / a.m - xhat * dgamma / a.m), a.dx)


def test_equation_22_sums_over_a_channel_serve_twice() -> None:
    for kind in ("instance", "group"):
        a = norm(kind)
        dy = split(kind, a.dy)
        a_ngc, q_ngc = dy.sum((3, 4)), (dy * a.xhat).sum((3, 4))
        same(a_ngc.sum(0).flatten(), a.dbeta)
        same(q_ngc.sum(0).flatten(), a.dgamma)
        gamma = a.gamma.unflatten(0, (G, C // G))
        inside = (2,) if kind == "group" else ()
        for sums, terms in ((a_ngc, a.g), (q_ngc, a.g * a.xhat)):
            weighted = gamma * sums
            same(weighted.sum(inside) if inside else weighted, terms.mean(a.axes) * a.m)


def test_equation_23_sums_of_input_gradients() -> None:
    for kind in ("batch", "instance", "group", "layer"):
        a = norm(kind)
        dx, q_mean = split(kind, a.dx), (a.g * a.xhat).mean(a.axes)
        vanishes(dx.sum(a.axes), a.dx)
        same((dx * a.xhat).sum(a.axes), a.m * EPSILON * a.r.reshape(q_mean.shape) ** 3 * q_mean)


def test_equation_24_jacobian_is_a_projection() -> None:
    x = draw(D)
    r, j = x.var(correction=0).rsqrt(), jacobian(lambda row: normalized(row, 0.0), x)
    same(j @ j, r * j)
    same(j.trace(), r * (D - 2))


def test_equation_25_sets_of_one_and_two() -> None:
    pair = draw(2)
    delta = (pair[0] - pair[1]) / 2
    same(normalized(pair), torch.stack((delta, -delta)) / (delta**2 + EPSILON).sqrt())
    vanishes(jacobian(lambda row: normalized(row, 0.0), pair), 1 / delta)
    assert normalized(draw(1)).item() == 0
    assert jacobian(normalized, draw(1)).item() == 0
