"""The equations of docs/derivations/attention.md on blocks of keys: online softmax and backward by recomputation.

Float64 against autograd or torch's own softmax.
"""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import math
from collections import Counter
from functools import cache, partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor
from torch.autograd.functional import hessian
from torch.utils.flop_counter import FlopCounterMode

T, D = 12, 5  # the letters of the page, for one head
N, C = 4, 3  # queries and keys of a block
S_BYTES = 2
SIGMA = 1 / math.sqrt(D)
QUERY_BLOCKS = [slice(start, start + N) for start in range(0, T, N)]
KEY_BLOCKS = [slice(start, start + C) for start in range(0, T, C)]
A, J = slice(0, 7), slice(7, 10)  # keys seen so far, and the next block: neither all, nor of one size
State = tuple[Tensor, Tensor, Tensor]
# The state of no keys, for T rows.
NOTHING = tuple(
    torch.full(shape, value, dtype=torch.float64) for shape, value in (((T,), -math.inf), ((T,), 0.0), ((T, D), 0.0))
)


def draw(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert torch.linalg.norm(got - want) <= 1e-10 * torch.linalg.norm(want)


@cache
def head() -> Any:
    """Attention of one head as its definition reads, with a gradient for its log-sum-exp, too, and autograd's answers.

    ``ds`` is for dO alone, ``ds_lse`` for dO and dL.
    """
    q, k, v, do = draw(4, T, D)
    q, k, v = (leaf.requires_grad_() for leaf in (q.clone(), k.clone(), v.clone()))
    s = torch.einsum("id,jd->ij", q, k) / D**0.5
    p, lse, dlse = s.softmax(-1), s.logsumexp(-1), draw(T, seed=1)
    o = p @ v
    dq, dk, dv, ds = torch.autograd.grad(o, (q, k, v, s), do, retain_graph=True)
    (ds_lse,) = torch.autograd.grad((o, lse), s, (do, dlse))
    found = {"q": q, "k": k, "v": v, "s": s, "p": p, "o": o, "lse": lse, "do": do, "dlse": dlse}
    found |= {"dq": dq, "dk": dk, "dv": dv, "ds": ds, "ds_lse": ds_lse}
    return SimpleNamespace(**{name: tensor.detach() for name, tensor in found.items()}, delta=(do * o).sum(-1).detach())


class Memory:
    """Counts what moves between a kernel and the memory one level up: matrices in elements, vectors in numbers."""

    def __init__(self) -> None:
        self.moved: Counter[int] = Counter()

    def __call__(self, tensor: Tensor) -> Tensor:
        self.moved[tensor.dim()] += tensor.numel()
        return tensor

    def bytes(self) -> int:
        return S_BYTES * self.moved[2] + 4 * self.moved[1]


def flash_forward(q: Tensor, k: Tensor, v: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    out, lse = torch.empty_like(q), torch.empty_like(q[:, 0])
    for rows in QUERY_BLOCKS:
        block = memory(q[rows])
        state = tuple(part[rows] for part in NOTHING)
        for keys in KEY_BLOCKS:
            state = extend(state, SIGMA * block @ memory(k[keys]).T, memory(v[keys]))
        out[rows], lse[rows] = memory(state[2] / state[1][:, None]), memory(state[0] + state[1].log())
    return out, lse


def weights(a: Any, rows: slice, keys: slice) -> Tensor:
    return torch.exp(SIGMA * a.q[rows] @ a.k[keys].T - a.lse[rows, None])


def dscores(a: Any, rows: slice, keys: slice) -> Tensor:
    return weights(a, rows, keys) * (a.do[rows] @ a.v[keys].T - a.delta[rows, None])


def one_loop(a: Any) -> Tensor:
    """The backward in one loop over pairs of blocks: dQ is added to in memory."""
    dq, dk, dv = torch.zeros_like(a.q), torch.zeros_like(a.k), torch.zeros_like(a.v)
    for rows, keys in product(QUERY_BLOCKS, KEY_BLOCKS):
        p = weights(a, rows, keys)
        ds = p * (a.do[rows] @ a.v[keys].T - a.delta[rows, None])
        dv[keys] += p.T @ a.do[rows]
        dk[keys] += SIGMA * ds.T @ a.q[rows]
        dq[rows] += SIGMA * ds @ a.k[keys]
    return torch.stack((dq, dk, dv))


def two_loops(a: Any, memory: Memory) -> Tensor:
    """The backward without additions in memory. Delta comes first, from dO and O."""
    dq, dk, dv = torch.empty_like(a.q), torch.empty_like(a.k), torch.empty_like(a.v)
    delta = memory((memory(a.do) * memory(a.o)).sum(-1))
    for keys in KEY_BLOCKS:
        k, v = memory(a.k[keys]), memory(a.v[keys])
        dk_block, dv_block = torch.zeros_like(k), torch.zeros_like(v)
        for rows in QUERY_BLOCKS:
            q, do = memory(a.q[rows]), memory(a.do[rows])
            p = torch.exp(SIGMA * q @ k.T - memory(a.lse[rows])[:, None])
            dv_block += p.T @ do
            dk_block += SIGMA * (p * (do @ v.T - memory(delta[rows])[:, None])).T @ q
        dk[keys], dv[keys] = memory(dk_block), memory(dv_block)
    for rows in QUERY_BLOCKS:
        q, do, lse, row_term = memory(a.q[rows]), memory(a.do[rows]), memory(a.lse[rows]), memory(delta[rows])
        dq_block = torch.zeros_like(q)
        for keys in KEY_BLOCKS:
            k = memory(a.k[keys])
            ds = torch.exp(SIGMA * q @ k.T - lse[:, None]) * (do @ memory(a.v[keys]).T - row_term[:, None])
            dq_block += SIGMA * ds @ k
        dq[rows] = memory(dq_block)
    return torch.stack((dq, dk, dv))


def state_of(s: Tensor, v: Tensor) -> State:
    """The state of the rows ``s`` over a set of keys, as its definition reads."""
    m = s.amax(-1)
    return m, (s - m[..., None]).exp().sum(-1), (s - m[..., None]).exp() @ v


def extend(state: State, s: Tensor, v: Tensor) -> State:
    m, total, a = state
    after = torch.maximum(m, s.amax(-1))
    shrink, p = (m - after).exp(), (s - after[..., None]).exp()
    return after, shrink * total + p.sum(-1), shrink[..., None] * a + p @ v


def merge(x: State, y: State) -> State:
    m = torch.maximum(x[0], y[0])
    left, right = (x[0] - m).exp(), (y[0] - m).exp()
    return m, left * x[1] + right * y[1], left[..., None] * x[2] + right[..., None] * y[2]


def any_state(seed: int) -> State:
    """A state of T rows that need not come from keys."""
    return 3 * draw(T, seed=seed), draw(T, seed=seed + 1).exp(), draw(T, D, seed=seed + 2)


def same_state(got: State, want: State) -> None:
    for one, other in zip(got, want, strict=True):
        same(one, other)


def test_equation_31_state_of_some_keys() -> None:
    a = head()
    m, total, acc = state_of(a.s[:, A], a.v[A])
    same(m + total.log(), a.s[:, A].logsumexp(-1))
    same(acc / total[:, None], a.s[:, A].softmax(-1) @ a.v[A])


def test_equation_32_state_of_all_keys_is_the_output() -> None:
    _, total, acc = state_of(head().s, head().v)
    same(acc / total[:, None], head().o)


def test_equation_33_running_maximum() -> None:
    s = head().s
    same(torch.maximum(s[:, A].amax(-1), s[:, J].amax(-1)), s[:, :10].amax(-1))


def test_equation_34_one_factor_moves_old_terms() -> None:
    a = head()
    m, after = a.s[:, A].amax(-1), a.s[:, :10].amax(-1)
    assert (after > m).any()
    same((m - after).exp() * (a.s[:, A] - m[:, None]).exp().sum(-1), (a.s[:, A] - after[:, None]).exp().sum(-1))


def test_equation_35_running_sum() -> None:
    a = head()
    same(extend(state_of(a.s[:, A], a.v[A]), a.s[:, J], a.v[J])[1], state_of(a.s[:, :10], a.v[:10])[1])


def test_equation_36_running_output() -> None:
    a = head()
    same(extend(state_of(a.s[:, A], a.v[A]), a.s[:, J], a.v[J])[2], state_of(a.s[:, :10], a.v[:10])[2])


def test_equation_37_merge_is_the_state_of_the_union() -> None:
    a = head()
    odd, even = slice(1, None, 2), slice(0, None, 2)
    merged = merge(state_of(a.s[:, odd], a.v[odd]), state_of(a.s[:, even], a.v[even]))
    same_state(merged, state_of(a.s, a.v))


def test_equation_38_merge_adds() -> None:
    x, y = any_state(10), any_state(20)
    m, total, acc = merge(x, y)
    same(m.exp() * total, x[0].exp() * x[1] + y[0].exp() * y[1])
    same(m.exp()[:, None] * acc, x[0].exp()[:, None] * x[2] + y[0].exp()[:, None] * y[2])


def test_equation_39_merge_commutes_and_has_a_neutral_state() -> None:
    x, y = any_state(10), any_state(20)
    same_state(merge(x, y), merge(y, x))
    same_state(merge(x, NOTHING), x)


def test_equation_40_merge_is_associative() -> None:
    x, y, z = any_state(10), any_state(20), any_state(30)
    same_state(merge(merge(x, y), z), merge(x, merge(y, z)))


def test_equation_41_log_sum_exp_of_maximum_and_sum() -> None:
    m, total, _ = state_of(head().s, head().v)
    same(m + total.log(), head().s.exp().sum(-1).log())


def test_equation_42_weights_from_log_sum_exp() -> None:
    same((head().s - head().lse[:, None]).exp(), head().p)


def test_equation_43_softmax_is_the_derivative_of_log_sum_exp() -> None:
    s = head().s.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(s.logsumexp(-1).sum(), s)
    same(gradient, head().p)
    p = head().p[0]
    same(hessian(lambda row: row.logsumexp(-1), head().s[0]), torch.diag(p) - torch.outer(p, p))


def test_equation_44_merge_of_finished_outputs() -> None:
    a = head()
    left, right = slice(0, 5), slice(5, T)
    (l_x, o_x), (l_y, o_y) = ((a.s[:, x].logsumexp(-1), a.s[:, x].softmax(-1) @ a.v[x]) for x in (left, right))
    lse = (l_x.exp() + l_y.exp()).log()
    same(lse, a.lse)
    same((l_x - lse).exp()[:, None] * o_x + (l_y - lse).exp()[:, None] * o_y, a.o)


def test_equation_45_bytes_of_the_forward_by_blocks() -> None:
    a, memory = head(), Memory()
    out, lse = flash_forward(a.q, a.k, a.v, memory)
    same(out, a.o)
    same(lse, a.lse)
    assert memory.bytes() == 2 * T * D * S_BYTES * (1 + T / N) + 4 * T


def test_equation_46_weights_of_a_block() -> None:
    for rows, keys in product(QUERY_BLOCKS, KEY_BLOCKS):
        same(weights(head(), rows, keys), head().p[rows, keys])


def test_equation_47_score_gradients_of_a_block() -> None:
    for rows, keys in product(QUERY_BLOCKS, KEY_BLOCKS):
        same(dscores(head(), rows, keys), head().ds[rows, keys])


def test_equation_48_keys_and_values_collect_from_query_blocks() -> None:
    a = head()
    for keys in KEY_BLOCKS:
        same(sum(weights(a, rows, keys).T @ a.do[rows] for rows in QUERY_BLOCKS), a.dv[keys])
        same(SIGMA * sum(dscores(a, rows, keys).T @ a.q[rows] for rows in QUERY_BLOCKS), a.dk[keys])


def test_equation_49_queries_collect_from_key_blocks() -> None:
    a = head()
    for rows in QUERY_BLOCKS:
        same(SIGMA * sum(dscores(a, rows, keys) @ a.k[keys] for keys in KEY_BLOCKS), a.dq[rows])


def test_equation_50_operations_of_one_and_two_loops() -> None:
    for products, backward in ((10, one_loop), (14, partial(two_loops, memory=Memory()))):
        with FlopCounterMode(display=False) as counter:
            backward(head())
        assert counter.get_total_flops() == products * T * T * D


def test_equation_51_bytes_of_two_loops() -> None:
    a, memory = head(), Memory()
    same(two_loops(a, memory), torch.stack((a.dq, a.dk, a.dv)))
    same(one_loop(a), torch.stack((a.dq, a.dk, a.dv)))
    assert memory.bytes() == T * D * S_BYTES * (9 + 2 * T / C + 2 * T / N) + 4 * T * (3 + 2 * T / C)


def test_equation_52_gradient_of_log_sum_exp_joins_the_row_term() -> None:
    a = head()
    same(a.p * (a.do @ a.v.T - (a.delta - a.dlse)[:, None]), a.ds_lse)
