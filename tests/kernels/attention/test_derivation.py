"""Every numbered equation of docs/derivations/attention.md, in float64, against autograd or a direct evaluation.

A test carries the number of its equation in its name. Equations on blocks of keys are in ``test_derivation_blocks.py``,
those of Fourier mixing in ``test_derivation_fourier.py``.
"""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor
from torch.autograd.functional import jacobian
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.utils.flop_counter import FlopCounterMode

from archbench.kernels.attention import AttentionCase
from archbench.kernels.attention._workload import EPS

B, H, G, T, D, E = 2, 6, 2, 12, 5, 7  # the letters of the page
R, SIGMA = H // G, 1 / math.sqrt(D)
S_BYTES = 2
LATER = torch.ones(T, T, dtype=torch.bool).triu(1)


def draw(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert torch.linalg.norm(got - want) <= 1e-10 * torch.linalg.norm(want)


def flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def elements(*tensors: Tensor) -> int:
    return sum(tensor.numel() for tensor in tensors)


@cache
def one_head(causal: bool = False) -> Any:
    """Attention of one head as its definition reads, with autograd's gradient of every tensor."""
    q, k, v, do = draw(4, T, D)
    q, k, v = (leaf.requires_grad_() for leaf in (q.clone(), k.clone(), v.clone()))
    s = torch.einsum("id,jd->ij", q, k) / D**0.5
    p = (s.masked_fill(LATER, -math.inf) if causal else s).softmax(-1)
    o = p @ v
    dq, dk, dv, ds, dp = torch.autograd.grad(o, (q, k, v, s, p), do)
    found = {"q": q, "k": k, "v": v, "s": s, "p": p, "o": o, "do": do}
    found |= {"dq": dq, "dk": dk, "dv": dv, "ds": ds, "dp": dp}
    return SimpleNamespace(**{name: tensor.detach() for name, tensor in found.items()})


@cache
def grouped() -> Any:
    """Grouped-query attention: out and gradients by torch's own, weights and their gradients by the definition."""
    q, do = draw(2, H, T, D, seed=1)
    k, v = draw(2, G, T, D, seed=2)
    leaves = [leaf.clone().requires_grad_() for leaf in (q, k, v)]
    out = sdpa(*(leaf[None] for leaf in leaves), enable_gqa=True)[0]
    dq, dk, dv = torch.autograd.grad(out, leaves, do)
    s = (torch.einsum("hid,hjd->hij", q, k.repeat_interleave(R, 0)) / D**0.5).requires_grad_()
    p = s.softmax(-1)
    (ds,) = torch.autograd.grad(p @ v.repeat_interleave(R, 0), s, do)
    return SimpleNamespace(q=q, k=k, v=v, do=do, out=out.detach(), dq=dq, dk=dk, dv=dv, p=p.detach(), ds=ds)


@cache
def layer() -> Any:
    """Multi-head attention with its four projections, and autograd's gradient of every tensor."""
    x, dy = draw(2, B, T, E, seed=3)
    shapes = {"wq": (E, H * D), "wk": (E, G * D), "wv": (E, G * D), "wo": (H * D, E)}
    w = {name: draw(*shape, seed=4 + n).requires_grad_() for n, (name, shape) in enumerate(shapes.items())}
    x.requires_grad_()
    q, k, v = x @ w["wq"], x @ w["wk"], x @ w["wv"]
    heads = (tensor.unflatten(-1, (-1, D)).transpose(1, 2) for tensor in (q, k, v))
    o = sdpa(*heads, enable_gqa=True).transpose(1, 2).flatten(2)
    y = o @ w["wo"]
    found = {"x": x, "q": q, "k": k, "v": v, "o": o, **w}
    gradients = torch.autograd.grad(y, list(found.values()), dy)
    found |= {"d" + name: gradient for name, gradient in zip(found, gradients, strict=True)} | {"y": y, "dy": dy}
    return SimpleNamespace(**{name: tensor.detach() for name, tensor in found.items()})


def test_equation_1_scores() -> None:
    # With the identity as values, attention returns its weights: their logarithms are scores up to a row's constant.
    p = sdpa(one_head().q[None], one_head().k[None], torch.eye(T, dtype=torch.float64)[None])[0]
    s = SIGMA * one_head().q @ one_head().k.T
    same(s - s[:, :1], p.log() - p.log()[:, :1])


def test_equation_2_weights() -> None:
    e = one_head().s.exp()
    same(e / e.sum(-1, keepdim=True), torch.softmax(one_head().s, -1))


def test_equation_3_output() -> None:
    a = one_head()
    same(a.p @ a.v, sdpa(a.q[None], a.k[None], a.v[None])[0])


def test_equation_4_variance_of_a_product() -> None:
    for size in (1, 2, 4):  # all rows q and k of signs: mean 0, variance 1, independent
        signs = torch.tensor(list(product((-1.0, 1.0), repeat=2 * size)), dtype=torch.float64)
        products = (signs[:, :size] * signs[:, size:]).sum(-1)
        same(products.var(unbiased=False), torch.tensor(float(size), dtype=torch.float64))


def attention_costs(backward: bool, causal: bool = False) -> AttentionCase:
    return AttentionCase(B, H, G, T, D, causal, "bf16", backward)


def test_equation_5_cost_of_the_forward() -> None:
    q, k, v = draw(B, H, T, D), *draw(2, B, G, T, D)
    case = attention_costs(backward=False)
    k_all, v_all = k.repeat_interleave(R, 1), v.repeat_interleave(R, 1)
    assert flops(lambda: (q @ k_all.mT).softmax(-1) @ v_all) == case.flops() == 4 * B * H * T**2 * D
    assert S_BYTES * elements(q, k, v, q) == case.bytes_moved() == 2 * B * (H + G) * T * D * S_BYTES


def test_equation_6_softmax_ignores_a_shift() -> None:
    for c in (-40.0, 3.7):
        same(torch.softmax(one_head().s + c, -1), one_head().p)


def test_equation_7_jacobian_of_the_softmax() -> None:
    p = one_head().p
    want = torch.einsum("im,ij,ijl->ijml", torch.eye(T).double(), p, torch.eye(T).double() - p[:, None])
    same(jacobian(lambda s: s.softmax(-1), one_head().s), want)


def test_equation_8_gradients_of_a_product() -> None:
    a, b, dy = draw(3, 4).requires_grad_(), draw(4, 6, seed=1).requires_grad_(), draw(3, 6, seed=2)
    da, db = torch.autograd.grad(a @ b, (a, b), dy)
    same(dy @ b.T, da)
    same(a.T @ dy, db)


def test_equation_9_gradients_of_values_and_weights() -> None:
    same(one_head().p.T @ one_head().do, one_head().dv)
    same(one_head().do @ one_head().v.T, one_head().dp)


def test_equation_10_gradient_of_scores() -> None:
    p, dp = one_head().p, one_head().dp
    same(torch.einsum("ij,ij,ijl->il", dp, p, torch.eye(T).double() - p[:, None]), one_head().ds)
    same(p * (dp - (p * dp).sum(-1, keepdim=True)), one_head().ds)


def test_equation_11_delta_is_the_gain_of_a_row_of_weights() -> None:
    # What f gains when all weights of a row grow by the same factor is sum_j P_ij dP_ij.
    growth = torch.ones(T, dtype=torch.float64, requires_grad=True)
    (gain,) = torch.autograd.grad((growth[:, None] * one_head().p) @ one_head().v, growth, one_head().do)
    same((one_head().p * one_head().dp).sum(-1), gain)


def test_equation_12_delta_is_rowsum_of_do_o() -> None:
    a = one_head()
    same((a.do * a.o).sum(-1), (a.p * a.dp).sum(-1))
    same(torch.einsum("ij,id,jd->i", a.p, a.do, a.v), (a.p * a.dp).sum(-1))


def test_equation_13_gradient_of_all_scores() -> None:
    a = one_head()
    same(a.p * (a.dp - (a.do * a.o).sum(-1, keepdim=True)), a.ds)


def test_equation_14_rows_of_score_gradients_add_up_to_zero() -> None:
    assert one_head().ds.sum(-1).abs().max() <= 1e-10 * one_head().ds.abs().max()


def test_equation_15_gradients_of_queries_and_keys() -> None:
    a = one_head()
    same(SIGMA * a.ds @ a.k, a.dq)
    same(SIGMA * a.ds.T @ a.q, a.dk)


def test_equation_16_cost_of_forward_and_backward() -> None:
    q, k, v = (draw(B, H, T, D, seed=n).requires_grad_() for n in range(3))
    case, kv = attention_costs(backward=True), draw(B, G, T, D)
    assert flops(lambda: ((q @ k.mT).softmax(-1) @ v).sum().backward()) == case.flops() == 12 * B * H * T**2 * D
    moved = elements(q, kv, kv, q) + elements(q, q, kv, kv)  # Q, K, V, dO and O, dQ, dK, dV
    assert S_BYTES * moved == case.bytes_moved() == 4 * B * (H + G) * T * D * S_BYTES


def test_equation_17_mask_before_the_softmax() -> None:
    a = one_head()
    masked = torch.where(LATER, -math.inf, a.s)
    same(masked.softmax(-1) @ a.v, sdpa(a.q[None], a.k[None], a.v[None], is_causal=True)[0])


def test_equation_18_masked_scores_have_no_gradient() -> None:
    a = one_head(causal=True)
    ds = a.p * (a.do @ a.v.T - (a.do * a.o).sum(-1, keepdim=True))  # without a mask of its own
    assert not a.p[LATER].any()
    assert not ds[LATER].any()
    same(SIGMA * ds @ a.k, a.dq)
    same(SIGMA * ds.T @ a.q, a.dk)


def test_equation_19_operations_under_a_causal_mask() -> None:
    a = one_head()
    rows = [flops(lambda i=i: (a.q[i : i + 1] @ a.k[: i + 1].T) @ a.v[: i + 1]) for i in range(T)]
    assert B * H * sum(rows) == attention_costs(backward=False, causal=True).flops() == 2 * B * H * T * (T + 1) * D


def test_equation_20_scores_computed_by_blocks() -> None:
    for length, block in ((12, 4), (12, 12), (12, 1), (30, 5)):
        starts = range(0, length, block)
        computed = sum(block * block for rows, keys in product(starts, starts) if keys < rows + block)
        exist = sum(row + 1 for row in range(length))
        assert computed * (length + 1) == exist * (length + block)


def test_equation_21_query_heads_share_a_kv_head() -> None:
    a = grouped()
    for h in range(H):
        same((SIGMA * a.q[h] @ a.k[h // R].T).softmax(-1) @ a.v[h // R], a.out[h])


def test_equation_22_gradients_of_a_kv_head_add_up() -> None:
    a = grouped()
    for g in range(G):
        same(SIGMA * sum(a.ds[g * R + r].T @ a.q[g * R + r] for r in range(R)), a.dk[g])
        same(sum(a.p[g * R + r].T @ a.do[g * R + r] for r in range(R)), a.dv[g])


def test_equation_23_the_sum_is_a_product_of_stacked_rows() -> None:
    a = grouped()
    same(SIGMA * a.ds.reshape(G, R * T, T).mT @ a.q.reshape(G, R * T, D), a.dk)


def test_equation_24_projections_cut_into_heads() -> None:
    a, y = layer(), torch.zeros(B, T, E, dtype=torch.float64)
    columns = [slice(n * D, n * D + D) for n in range(H)]
    for h, own in enumerate(columns):
        shared = columns[h // R]
        q, k, v = a.x @ a.wq[:, own], a.x @ a.wk[:, shared], a.x @ a.wv[:, shared]
        same(q, a.q[..., own])
        y += sdpa(q, k, v) @ a.wo[own]
    same(y, a.y)


def test_equation_25_output_projection_mixes_the_heads() -> None:
    a = layer()
    same(torch.einsum("bthd,hde->bte", a.o.unflatten(-1, (H, D)), a.wo.unflatten(0, (H, D))), a.y)


def test_equation_26_gradient_into_attention() -> None:
    same(layer().dy @ layer().wo.T, layer().do)


def test_equation_27_gradient_of_the_output_projection() -> None:
    a = layer()
    same(sum(a.o[b].T @ a.dy[b] for b in range(B)), a.dwo)


def test_equation_28_gradients_of_the_input_projections() -> None:
    a = layer()
    for weight, gradient in ((a.dwq, a.dq), (a.dwk, a.dk), (a.dwv, a.dv)):
        same(sum(a.x[b].T @ gradient[b] for b in range(B)), weight)


def test_equation_29_gradient_of_the_input() -> None:
    a = layer()
    same(a.dq @ a.wq.T + a.dk @ a.wk.T + a.dv @ a.wv.T, a.dx)


def test_equation_30_cost_of_the_projections() -> None:
    a = layer()
    pairs = [(left.clone().requires_grad_(), right.clone().requires_grad_()) for left, right in
             ((a.x, a.wq), (a.x, a.wk), (a.x, a.wv), (a.o, a.wo))]  # fmt: skip
    cost = 4 * B * T * E * D * (H + G)
    assert flops(lambda: [left @ right for left, right in pairs]) == cost
    assert flops(lambda: sum((left @ right).sum() for left, right in pairs).backward()) == 3 * cost
    moved = elements(a.x, a.y, a.wq, a.wk, a.wv, a.wo, a.q, a.k, a.v, a.o)
    assert S_BYTES * moved == 2 * (B * T * E + (E + B * T) * D * (H + G)) * S_BYTES


def test_equation_60_rounding_error_of_a_score() -> None:
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        for k in (-2, 0, 2, 3):
            x = 2.0**k * torch.arange(1, 2, EPS[name] / 8, dtype=torch.float64)
            for signed in (x, -x):
                assert (signed.to(dtype).double() - signed).abs().max() == 2.0 ** (k - 1) * EPS[name]


def test_equation_61_weights_of_scores_in_error() -> None:
    p, eta = one_head().p, 0.1 * draw(T, T, seed=1)
    same((one_head().s + eta).softmax(-1), p * eta.exp() / (p * eta.exp()).sum(-1, keepdim=True))


def test_equation_62_weights_are_off_by_the_spread_of_errors() -> None:
    scores, eta = draw(500, 3), 0.1 * draw(500, 3, seed=1)
    moved = ((scores + eta).softmax(-1) / scores.softmax(-1)).log().abs().amax(-1)
    spread = eta.amax(-1) - eta.amin(-1)
    assert (moved <= spread).all()
    assert (moved > 0.9 * spread).any()


def test_equation_63_no_overflow_after_the_maximum() -> None:
    scores = torch.stack([1e4 * draw(T), torch.full((T,), 7.0).double(), torch.full((T,), -2e4).double()])
    assert scores.exp().sum(-1).isinf().any()
    assert (scores.exp().sum(-1) == 0).any()
    terms = (scores - scores.amax(-1, keepdim=True)).exp()
    assert terms.min() >= 0
    assert terms.max() == 1
    assert terms.sum(-1).tolist() == [1, T, T], "both ends of the range are met"


def test_equation_64_squared_weights_of_normal_scores() -> None:
    x, density = np.polynomial.hermite_e.hermegauss(60)  # integrals against the normal density
    density = density / density.sum()
    assert (density @ np.exp(2 * x)) / (density @ np.exp(x)) ** 2 == pytest.approx(math.e, rel=1e-10)
