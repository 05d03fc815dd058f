"""The equations of docs/derivations/attention.md on Fourier mixing, in float64, against torch.fft and autograd."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor

from archbench.kernels.attention import AttentionCase, fourier

T, D = 12, 5  # the letters of the page


def draw(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert torch.linalg.norm(got - want) <= 1e-10 * torch.linalg.norm(want)


def fourier_matrix(size: int) -> Tensor:
    index = torch.arange(size, dtype=torch.float64)
    return torch.exp(-2j * math.pi * torch.outer(index, index) / size)


def test_equation_53_fourier_matrix() -> None:
    x = draw(T, 3)
    same(fourier_matrix(T) @ x.to(torch.complex128), torch.fft.fft(x, dim=0))


def mixed(v: Tensor) -> Tensor:
    return torch.fft.fft2(v).real


def test_equation_54_mixing_is_two_matrix_products() -> None:
    v = draw(T, D)
    same((fourier_matrix(T) @ v.to(torch.complex128) @ fourier_matrix(D)).real, mixed(v))


def test_equation_55_entries_of_the_mix() -> None:
    v, t, d = draw(T, D), torch.arange(T).double(), torch.arange(D).double()
    angle = torch.outer(t, t)[:, None, :, None] / T + torch.outer(d, d)[None, :, None, :] / D
    same(torch.einsum("td,kctd->kc", v, torch.cos(2 * math.pi * angle)), mixed(v))


def test_equation_56_mixing_in_real_products() -> None:
    v, f_t, f_d = draw(T, D), fourier_matrix(T), fourier_matrix(D)
    same(f_t.real @ v @ f_d.real - (-f_t.imag) @ v @ (-f_d.imag), mixed(v))


def test_equation_57_gradient_is_the_forward_map() -> None:
    v, dy = draw(T, D).requires_grad_(), draw(T, D, seed=1)
    (dv,) = torch.autograd.grad(mixed(v), v, dy)
    same((fourier_matrix(T) @ dy.to(torch.complex128) @ fourier_matrix(D)).real, dv)


def test_equation_58_twice_keeps_the_even_half() -> None:
    v = draw(T, D)
    reversed_v = v[-torch.arange(T) % T][:, -torch.arange(D) % D]
    same(mixed(mixed(v)), T * D / 2 * (v + reversed_v))
    assert mixed(v - reversed_v).abs().max() <= 1e-10 * mixed(v).abs().max()


def radix_2(x: list[complex], count: Counter[str]) -> list[complex]:
    """Transform of a power of two of numbers. A butterfly is a complex product and two complex sums: 6 + 2 + 2."""
    if len(x) == 1:
        return x
    even, odd = radix_2(x[::2], count), radix_2(x[1::2], count)
    turned = [np.exp(-2j * np.pi * n / len(x)) * value for n, value in enumerate(odd)]
    count["operations"] += 10 * len(turned)
    pairs = list(zip(even, turned, strict=True))
    return [a + b for a, b in pairs] + [a - b for a, b in pairs]


def test_equation_59_cost_of_mixing() -> None:
    length, head_dim, count = 16, 8, Counter[str]()
    v = draw(length, head_dim)
    rows = [radix_2(row, count) for row in v.tolist()]
    columns = [radix_2(list(column), count) for column in zip(*rows, strict=True)]
    same(torch.tensor(columns).real.T, mixed(v))
    assert count["operations"] == 5 * length * head_dim * math.log2(length * head_dim)
    batch, heads, groups = 2, 6, 2
    case = AttentionCase(batch, heads, groups, T, D, dtype="fp64")
    v = draw(batch, groups, T, D)
    out = fourier.CONTENDER.build(case)(draw(batch, heads, T, D), v, v)
    assert v.nbytes + out.nbytes == batch * (groups + heads) * T * D * v.itemsize
