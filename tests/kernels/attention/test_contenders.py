"""What the generic test cannot see of the attention contenders written here."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import importlib
import warnings
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from archbench.checks import Wrong
from archbench.kernels.attention import TRACK, AttentionCase
from archbench.kernels.attention._sdpa_backend import only
from archbench.track import Contender, Unavailable

EXACT = AttentionCase(batch=2, heads=4, length=21, head_dim=8, dtype="fp64", backward=True)
GRADIENT = [
    pytest.param(replace(EXACT, kv_heads=kv_heads, causal=causal), id=f"kv{kv_heads}-{'causal' if causal else 'full'}")
    for kv_heads in (4, 2, 1)
    for causal in (False, True)
]


def contender(name: str) -> Contender[AttentionCase]:
    found: Contender[AttentionCase] = importlib.import_module(f"archbench.kernels.attention.{name}").CONTENDER
    return found


def autograd_of_the_definition(case: AttentionCase, q: Any, k: Any, v: Any) -> Any:
    """Attention as its definition reads, for autograd to differentiate."""
    shared = case.heads // case.groups
    k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * case.head_dim**-0.5
    if case.causal:
        scores = scores + torch.full((case.length, case.length), -torch.inf, dtype=scores.dtype).triu(1)
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)


@pytest.mark.parametrize("case", GRADIENT)
@pytest.mark.parametrize("name", ["manual_backward", "online_softmax"])
def test_hand_derived_gradients_are_those_of_autograd(
    name: str, case: AttentionCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "online_softmax":  # several blocks, the last one short
        monkeypatch.setattr(importlib.import_module("archbench.kernels.attention.online_softmax"), "BLOCK", 8)
    inputs = TRACK.make_inputs(case, 11, "cpu")
    got = TRACK.workload(case, contender(name).build(case))(*inputs)
    want = TRACK.workload(case, lambda q, k, v: autograd_of_the_definition(case, q, k, v))(*inputs)
    for one, other in zip(got, want, strict=True):
        assert torch.linalg.norm(one - other) <= 1e-10 * torch.linalg.norm(other)


@pytest.mark.parametrize("name", ["manual_backward", "online_softmax"])
def test_a_second_derivative_is_refused_instead_of_wrong(name: str) -> None:
    q, k, v, dout = (tensor.requires_grad_() for tensor in TRACK.make_inputs(EXACT, 12, "cpu"))
    out = contender(name).build(EXACT)(q, k, v)
    (dq,) = torch.autograd.grad(out, q, dout, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


class LargestTensor(TorchDispatchMode):
    """The largest result of any operation, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize(("name", "square"), [("online_softmax", False), ("naive", True), ("manual_backward", True)])
def test_only_the_online_softmax_never_holds_all_scores(name: str, square: bool) -> None:
    case = AttentionCase(heads=2, length=640, dtype="fp32", causal=True, backward=True)
    inputs = TRACK.make_inputs(case, 13, "cpu")
    work = TRACK.workload(case, contender(name).build(case))
    with LargestTensor() as largest:
        work(*inputs)
    scores = case.heads * case.length**2
    assert (largest.elements >= scores) == square
    if not square:
        assert largest.elements == case.heads * case.length * 128  # the scores of one block of keys


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_fourier_is_numpys_transform(kv_heads: int) -> None:
    case = AttentionCase(heads=4, kv_heads=kv_heads, length=63, dtype="fp64")
    fourier = contender("fourier")
    assert fourier.gate is not None
    assert fourier.differs
    q, k, v = TRACK.make_inputs(case, 14, "cpu")
    out = fourier.build(case)(q, k, v)
    want = np.fft.fft(np.fft.fft(v.numpy(), axis=-1), axis=-2).real.repeat(4 // kv_heads, axis=1)
    np.testing.assert_allclose(out.numpy(), want, rtol=1e-10, atol=1e-10)
    assert fourier.gate(case, (q, k, v), out) < 1e-14
    with pytest.raises(Wrong, match="transform of 4032 points"):
        fourier.gate(case, (q, k, v), out / 63)
    with pytest.raises(Wrong):
        TRACK.gate(case, (q, k, v), out)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [({"causal": True}, "cannot be causal"), ({"backward": True}, "no gradient"), ({"dtype": "bf16"}, "no bf16")],
)
def test_fourier_refuses_what_it_cannot_mean(sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(Unavailable, match=said):
        contender("fourier").build(replace(AttentionCase(), **sizes))


@pytest.mark.filterwarnings("ignore")  # torch says in warnings why it refuses
@pytest.mark.parametrize("backend", ["EFFICIENT_ATTENTION", "CUDNN_ATTENTION"])
def test_a_backend_without_a_kernel_is_unavailable(backend: str) -> None:
    case = AttentionCase(heads=2, length=16)
    call = only(getattr(SDPBackend, backend), case)
    with pytest.raises(Unavailable, match=f"no {backend} kernel for this case on cpu"):
        call(*TRACK.make_inputs(case, 15, "cpu"))


@pytest.mark.parametrize("strictness", ["error", "ignore"])
def test_torchs_own_words_are_the_reason(strictness: Literal["error", "ignore"]) -> None:
    call = only(SDPBackend.FLASH_ATTENTION, AttentionCase(heads=2, length=16))
    q, k = torch.zeros(1, 2, 16, 8), torch.zeros(1, 3, 16, 8)
    with warnings.catch_warnings():
        warnings.simplefilter(strictness)
        with pytest.raises(Unavailable, match="same num_heads"):
            call(q, k, k)


def test_a_users_mistake_stays_an_error() -> None:
    call = only(SDPBackend.FLASH_ATTENTION, AttentionCase(heads=2, length=16))
    q = torch.zeros(1, 2, 16, 8)
    with pytest.raises(RuntimeError, match="same dtype"):
        call(q, q.double(), q)


def test_contenders_say_at_once_what_they_cannot_do() -> None:
    with pytest.raises(Unavailable, match="no fp64"):
        contender("flex_attention").build(AttentionCase(dtype="fp64"))
    case = AttentionCase(heads=2, length=8, backward=True)
    work = TRACK.workload(case, contender("flex_attention").build(case))
    with pytest.raises(Unavailable, match="no backward on CPU"):
        work(*TRACK.make_inputs(case, 1, "cpu"))
