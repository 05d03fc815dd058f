"""The C++ kernel beyond the track's cases: odd sizes, every way through the arithmetic, threads, memory."""

from __future__ import annotations

import ctypes
import math
import platform
import resource

import pytest
import torch
from torch import Tensor

from archbench.hardware import native
from archbench.kernels.attention.cpu_native import SOURCES, attention, forward

# Wider instructions of this processor are left out, so that the paths of smaller ones run here too.
WAYS: dict[str, tuple[str, ...]] = {"native": ()}
if platform.machine() == "x86_64":
    WAYS["without bf16 pairs"] = ("-mno-avx512bf16",)
    WAYS["avx2"] = ("-mno-avx512f", "-mno-avx512bf16")
    WAYS["narrow"] = ("-mno-avx512f", "-mno-avx512bf16", "-mno-avx2", "-mno-avx")  # the vectors of NEON


@pytest.fixture(params=WAYS, scope="module")
def library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(native.build(SOURCES, WAYS[request.param])))
    except native.Unavailable as reason:
        pytest.skip(str(reason))


def inputs(batch: int, heads: int, groups: int, length: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length + dim)
    return [torch.randn(batch, n, length, dim, generator=generator).to(dtype) for n in (heads, groups, groups)]


def reference(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    shared = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(shared, 1) for x in (k, v))
    scores = q.double() @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


SIZES = [  # batch, heads, KV heads, length, head size
    (1, 1, 1, 1, 8), (1, 2, 2, 47, 64), (2, 4, 1, 48, 64), (1, 2, 1, 49, 64), (1, 1, 1, 255, 32),
    (1, 2, 2, 257, 40), (1, 2, 1, 300, 80), (1, 1, 1, 513, 128), (1, 1, 1, 130, 256),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.bfloat16, 3e-2)])
def test_output_and_logsumexp(
    library: ctypes.CDLL, size: tuple[int, ...], causal: bool, dtype: torch.dtype, bound: float
) -> None:
    q, k, v = inputs(*size, dtype)
    out, lse = forward(library, q, k, v, causal, save=True)
    want, want_lse = reference(q, k, v, causal)
    assert lse is not None
    assert (out.double() - want).abs().max() < bound
    assert (lse.double() - want_lse).abs().max() < 1e-5


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 6e-2)])
def test_gradients(library: ctypes.CDLL, size: tuple[int, ...], causal: bool, dtype: torch.dtype, bound: float) -> None:
    leaves = [x.requires_grad_() for x in inputs(*size, dtype)]
    out = attention(library, *leaves, causal=causal)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    got = torch.autograd.grad(out, leaves, dout)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    want = torch.autograd.grad(reference(*wide, causal)[0], wide, dout.double())
    for name, ours, theirs in zip("qkv", got, want, strict=True):
        assert ours.dtype is dtype
        assert (ours.double() - theirs).abs().max() < bound, name


def test_large_scores_do_not_overflow(library: ctypes.CDLL) -> None:
    q, k, v = inputs(1, 1, 1, 100, 64, torch.float32)
    out, _ = forward(library, q * 60, k * 60, v, False, save=False)
    assert (out.double() - reference(q * 60, k * 60, v, False)[0]).abs().max() < 1e-2  # scores near 4e4, in float32
    assert out.isfinite().all()


def test_strided_inputs_and_any_number_of_threads_give_the_same(library: ctypes.CDLL) -> None:
    q, k, v = inputs(1, 3, 3, 200, 64, torch.float32)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(attention(library, q, k, v, causal=True))
    torch.set_num_threads(before)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    found.append(attention(library, *strided, causal=True))
    assert all(torch.equal(found[0], other) for other in found)


def test_memory_grows_with_the_length_not_with_its_square(library: ctypes.CDLL) -> None:
    q, k, v = inputs(1, 1, 1, 16384, 64, torch.float32)  # the scores alone would be a gigabyte
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forward(library, q, k, v, True, save=False)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 100e6


def test_the_sources_are_in_the_package() -> None:
    assert {path.suffix for path in SOURCES.iterdir()} == {".cpp", ".hpp"}
