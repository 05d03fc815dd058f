"""The mirrored real transform: equal to the definition at every shape, its own gradient, in the dtype it was given."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.kernels.mixing_block import _layers
from archbench.kernels.mixing_block._layers import FourierMixing, real_fft2

SHAPES = [(1, 1, 1), (2, 1, 6), (2, 6, 1), (1, 2, 2), (3, 7, 5), (2, 8, 9), (2, 9, 8), (1, 63, 100), (2, 257, 64)]


def normal(*shape: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_real_part_of_the_two_dimensional_transform(shape: tuple[int, ...]) -> None:
    x_BTD = normal(*shape)
    torch.testing.assert_close(real_fft2(x_BTD), torch.fft.fft2(x_BTD).real, rtol=1e-11, atol=1e-11)
    ortho = torch.fft.fft2(x_BTD, norm="ortho").real
    torch.testing.assert_close(FourierMixing("ortho")(x_BTD), ortho, rtol=1e-11, atol=1e-11)


def test_samples_taken_in_chunks_are_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    x_BTD = normal(5, 12, 10)
    whole = real_fft2(x_BTD)
    monkeypatch.setattr(_layers, "CHUNK_NUMBERS", 2 * 12 * 10)  # chunks of 2, 2 and 1
    assert torch.equal(real_fft2(x_BTD), whole)


@pytest.mark.parametrize("norm", ["backward", "ortho"])
@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 5, 7)], ids=str)
def test_the_gradient_is_the_transform_itself_twice_over(shape: tuple[int, ...], norm: str) -> None:
    x_BTD = normal(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: real_fft2(x, norm), (x_BTD,))
    assert torch.autograd.gradgradcheck(lambda x: real_fft2(x, norm), (x_BTD,))


def test_half_precision_is_transformed_in_float32_and_rounded_once() -> None:
    x_BTD = normal(2, 32, 24).bfloat16()
    out = real_fft2(x_BTD)
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.float(), torch.fft.fft2(x_BTD.float()).real, rtol=2.0**-8, atol=1e-4)


def test_a_transposed_input_is_transformed_as_it_reads() -> None:
    x_BTD = normal(2, 10, 6).mT
    assert not x_BTD.is_contiguous()
    out = real_fft2(x_BTD)
    assert out.is_contiguous()
    torch.testing.assert_close(out, torch.fft.fft2(x_BTD).real, rtol=1e-11, atol=1e-11)
