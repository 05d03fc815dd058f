"""The gate of the attention track: the reference is right, and wrong answers of every kind are refused."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

import torch.nn.functional as F

from archbench.checks import Wrong
from archbench.kernels.attention import TRACK, AttentionCase, _workload

GROUPED = AttentionCase(batch=2, heads=4, kv_heads=2, length=70, head_dim=32, causal=True, dtype="fp64", backward=True)
HALF = AttentionCase(heads=4, kv_heads=2, length=130, dtype="bf16", causal=True)


def sdpa(case: AttentionCase, q: Any, k: Any, v: Any, **changed: Any) -> Any:
    return F.scaled_dot_product_attention(q, k, v, **({"is_causal": case.causal, "enable_gqa": case.grouped} | changed))


def answer(case: AttentionCase, call: Any, inputs: Any) -> Any:
    return TRACK.workload(case, lambda q, k, v: call(case, q, k, v))(*inputs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_reference_is_sdpa_in_float64(kv_heads: int, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(GROUPED, kv_heads=kv_heads, causal=causal)
    monkeypatch.setitem(_workload.CHUNK_SCORES, "cpu", 9 * 4 * case.length)  # several chunks, the last one short
    inputs = TRACK.make_inputs(case, 5, "cpu")
    for got, want in zip(_workload.reference(case, *inputs), answer(case, sdpa, inputs), strict=True):
        assert torch.linalg.norm(got - want) <= 1e-12 * torch.linalg.norm(want)


def test_the_reference_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = TRACK.make_inputs(GROUPED, 6, "cpu")
    whole = _workload.reference(GROUPED, *inputs)
    monkeypatch.setitem(_workload.CHUNK_SCORES, "cpu", 1)  # one row at a time
    for got, want in zip(_workload.reference(GROUPED, *inputs), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_the_same_seed_asks_the_same_question() -> None:
    first, again, other = (TRACK.make_inputs(HALF, seed, "cpu") for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert [tuple(tensor.shape) for tensor in first] == [(1, 4, 130, 64), (1, 2, 130, 64), (1, 2, 130, 64)]
    assert {tensor.dtype for tensor in first} == {torch.bfloat16}


def swapped_groups(case: AttentionCase, q: Any, k: Any, v: Any) -> Any:
    """KV head g given to heads g, g + G, ... instead of to neighbours."""
    shared = case.heads // case.groups
    return sdpa(case, q, k.repeat(1, shared, 1, 1), v.repeat(1, shared, 1, 1), enable_gqa=False)


def strict_mask(case: AttentionCase, q: Any, k: Any, v: Any) -> Any:
    """The diagonal masked, too, from row 1 on."""
    seen = torch.ones(case.length, case.length, dtype=torch.bool).tril(-1)
    seen[0, 0] = True
    return sdpa(case, q, k, v, is_causal=False, attn_mask=seen)


def silent_late_rows(case: AttentionCase, q: Any, k: Any, v: Any) -> Any:
    """The last rows left at zero: small numbers, which a bound fit for the first rows would let pass."""
    out = sdpa(case, q, k, v).clone()
    out[:, :, -2:] = 0
    return out


def tail_forgotten(case: AttentionCase, q: Any, k: Any, v: Any) -> Any:
    """The keys after the last whole block of 64 left out."""
    kept = case.length // 64 * 64
    seen = torch.ones(case.length, case.length, dtype=torch.bool).tril()
    seen[:, kept:] = False
    return sdpa(case, q, k, v, is_causal=False, attn_mask=seen)


MISTAKES = {
    "no mask": lambda case, q, k, v: sdpa(case, q, k, v, is_causal=False),
    "no scale": lambda case, q, k, v: sdpa(case, q, k, v, scale=1.0),
    "scale 1/D": lambda case, q, k, v: sdpa(case, q, k, v, scale=1 / case.head_dim),
    "scale 1 % off": lambda case, q, k, v: sdpa(case, q, k, v, scale=1.01 / math.sqrt(case.head_dim)),
    "swapped KV heads": swapped_groups,
    "strict mask": strict_mask,
    "silent late rows": silent_late_rows,
    "forgotten tail": tail_forgotten,
    "not a number": lambda case, q, k, v: sdpa(case, q, k, v) / 0 * 0,
    "transposed": lambda case, q, k, v: sdpa(case, q, k, v).transpose(1, 2),
}


ONLY_FP32_SEES = ("scale 1 % off",)  # scores rounded to half precision are off by as much
EVERY_MISTAKE = [
    (mistake, dtype)
    for mistake in MISTAKES
    for dtype in ("fp32", "bf16", "fp16")
    if dtype == "fp32" or mistake not in ONLY_FP32_SEES
]


@pytest.mark.parametrize(("mistake", "dtype"), EVERY_MISTAKE)
def test_a_mistake_is_wrong(mistake: str, dtype: str) -> None:
    case = replace(HALF, dtype=dtype)
    inputs = TRACK.make_inputs(case, 3, "cpu")
    assert TRACK.gate(case, inputs, answer(case, sdpa, inputs)) < 0.01
    with pytest.raises(Wrong):
        TRACK.gate(case, inputs, answer(case, MISTAKES[mistake], inputs))


@pytest.mark.parametrize("name", ["dq", "dk", "dv"])
def test_a_wrong_gradient_is_named(name: str) -> None:
    case = replace(HALF, backward=True)
    inputs = TRACK.make_inputs(case, 4, "cpu")
    outputs = dict(zip(_workload.NAMES, answer(case, sdpa, inputs), strict=True))
    outputs[name] = outputs[name] * 1.5
    with pytest.raises(Wrong, match=rf"^{name} \(rows \d+ to \d+\)"):
        TRACK.gate(case, inputs, list(outputs.values()))
    with pytest.raises(Wrong, match="returned 1 tensors, expected 4: out, dq, dk, dv"):
        TRACK.gate(case, inputs, outputs["out"])


def test_tf32_products_do_not_pass_as_fp32() -> None:
    def as_tf32(tensor: Any) -> Any:
        return (tensor.view(torch.int32) & ~((1 << 13) - 1)).view(torch.float32)

    case = AttentionCase(heads=2, length=200, dtype="fp32")
    inputs = TRACK.make_inputs(case, 7, "cpu")
    q, k, v = inputs
    assert TRACK.gate(case, inputs, sdpa(case, q, k, v)) < 1e-6
    with pytest.raises(Wrong, match="fp32"):
        TRACK.gate(case, inputs, sdpa(case, as_tf32(q), as_tf32(k), v))


def test_float32_does_not_pass_as_fp64() -> None:
    case = replace(GROUPED, backward=False)
    inputs = TRACK.make_inputs(case, 8, "cpu")
    with pytest.raises(Wrong, match="fp64"):
        TRACK.gate(case, inputs, sdpa(case, *(tensor.float() for tensor in inputs)).double())


@pytest.mark.parametrize(
    ("dtype", "cast", "sentence"),
    [
        ("bf16", torch.Tensor.float, "out is torch.float32, expected torch.bfloat16"),
        ("fp32", torch.Tensor.double, "out is torch.float64, expected torch.float32"),
        ("fp32", lambda out: out.numpy(), "out is a ndarray, expected a Tensor"),
    ],
)
def test_an_answer_in_another_precision_is_another_answer(dtype: str, cast: Any, sentence: str) -> None:
    case = AttentionCase(heads=2, length=70, dtype=dtype)
    inputs = TRACK.make_inputs(case, 8, "cpu")
    with pytest.raises(Wrong, match=sentence):
        TRACK.gate(case, inputs, cast(sdpa(case, *inputs)))


def test_a_subclass_is_no_tensor_whatever_it_calls_itself() -> None:
    disguised = type("Tensor", (torch.Tensor,), {"__module__": "torch"})
    case = AttentionCase(heads=2, length=70, dtype="fp32")
    inputs = TRACK.make_inputs(case, 8, "cpu")
    out = sdpa(case, *inputs)
    assert TRACK.gate(case, inputs, out) < 1e-6
    with pytest.raises(Wrong, match=r"out is a torch\.Tensor, not an array"):
        TRACK.gate(case, inputs, out.as_subclass(disguised))
