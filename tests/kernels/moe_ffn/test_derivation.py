"""Equations 1 to 11 of docs/derivations/moe.md: the mixture and its gradients, the losses of a router; in float64.

A test carries the number of its equation in its name. What a capacity drops is in ``test_derivation_capacity.py``, what
a layer costs in ``test_derivation_cost.py``.
"""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from archbench.kernels.moe_ffn import Z_WEIGHT, MoeCase
from archbench.kernels.moe_ffn._layers import expert, expert_by_expert
from archbench.kernels.moe_ffn._routing import routing

T, D, H, E, K = 9, 6, 5, 4, 2
MIXTRAL = MoeCase(1, T, D, H, E, top_k=K, dtype="fp64")
SWITCH = MoeCase(1, T, D, H, E, top_k=1, router="switch", dtype="fp64")
UNIFORM = torch.zeros(1, T)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-11 * want.abs().max()


X, W, IN, OUT, DY = (
    draw(1, T, D, seed=1),
    draw(E, D, seed=2),
    draw(E, 2 * H, D, seed=3),
    draw(E, H, D, seed=4),
    draw(T, D),
)


def say(e: int, x: Tensor) -> Tensor:
    """F of equation (2): what expert e answers, from U, G and V."""
    gate, up, back = IN[e, :H], IN[e, H:], OUT[e].T
    a = gate @ x
    return back @ (a / (1 + (-a).exp()) * (up @ x))


def gradients(case: MoeCase) -> tuple[Tensor, ...]:
    """autograd's, of x, router, w_in and w_out, for dy alone."""
    leaves = [leaf.clone().requires_grad_() for leaf in (X, W, IN, OUT)]
    answer = expert_by_expert(case, *leaves, UNIFORM)
    y = answer[0] if isinstance(answer, tuple) else answer
    return torch.autograd.grad(y, leaves, DY.unsqueeze(0))


def weights(case: MoeCase, logits: Tensor) -> Tensor:
    """(T, E), 0 where an expert is not chosen."""
    found = routing(case, logits.unsqueeze(0), UNIFORM)
    return torch.zeros(T, E, dtype=torch.float64).index_put((found.token_A, found.expert_A), found.weight_A)


def slopes() -> Tensor:
    """s (T, E)."""
    return torch.stack([torch.stack([DY[t] @ say(e, X[0, t]) for e in range(E)]) for t in range(T)])


def through_the_weights(case: MoeCase) -> Tensor:
    """dz by autograd, (T, E), with answers held fixed."""
    logits = (X[0] @ W.T).requires_grad_()
    (dz,) = torch.autograd.grad((weights(case, logits) * slopes()).sum(), logits)
    return dz


def test_equation_1_softmax_and_its_jacobian() -> None:
    z = draw(E)
    p = z.exp() / z.exp().sum()
    same(z.softmax(0), p)
    want = torch.stack([torch.stack([p[e] * (int(e == j) - p[j]) for j in range(E)]) for e in range(E)])
    same(jacobian(lambda z: z.softmax(0), z), want)
    assert want.abs().max() <= 0.25
    half = torch.zeros(2, dtype=torch.float64)
    assert jacobian(lambda z: z.softmax(0), half).abs().max() == 0.25  # and no less than that


def test_equation_2_the_mixture() -> None:
    w = weights(MIXTRAL, X[0] @ W.T)
    y = torch.stack([sum((w[t, e] * say(e, X[0, t]) for e in range(E)), torch.zeros(D).double()) for t in range(T)])
    same(expert_by_expert(MIXTRAL, X, W, IN, OUT, UNIFORM)[0], y)
    same(expert(X[0], IN[1], OUT[1]), torch.stack([say(1, x) for x in X[0]]))


def test_equation_3_gradients_of_an_expert() -> None:
    w, (_, _, w_in, w_out) = weights(MIXTRAL, X[0] @ W.T), gradients(MIXTRAL)
    for e in range(E):
        gate, up = IN[e, :H], IN[e, H:]
        d_v, d_u, d_g = torch.zeros(D, H).double(), torch.zeros(H, D).double(), torch.zeros(H, D).double()
        for t in range(T):
            x, dy = X[0, t], DY[t]
            a, u = gate @ x, up @ x
            sigma = 1 / (1 + (-a).exp())
            dh = w[t, e] * OUT[e] @ dy
            d_v += w[t, e] * torch.outer(dy, a * sigma * u)
            d_u += torch.outer(dh * a * sigma, x)
            d_g += torch.outer(dh * u * sigma * (1 + a * (1 - sigma)), x)
        same(w_out[e], d_v.T)
        same(w_in[e], torch.cat((d_g, d_u)))
    nobody = MoeCase(1, 1, D, H, E, top_k=1, dtype="fp64")
    leaf = IN.clone().requires_grad_()
    expert_by_expert(nobody, X[:, :1], W, leaf, OUT, UNIFORM[:, :1]).sum().backward()
    assert leaf.grad is not None
    assert int((leaf.grad.flatten(1) == 0).all(1).sum()) == E - 1


def test_equation_4_gradients_of_token_and_router() -> None:
    w, dz, (dx, router, _, _) = weights(MIXTRAL, X[0] @ W.T), through_the_weights(MIXTRAL), gradients(MIXTRAL)
    want = dz @ W
    for t in range(T):
        for e in range(E):
            want[t] += w[t, e] * jacobian(lambda x, e=e: say(e, x), X[0, t]).T @ DY[t]
    same(dx[0], want)
    same(router, sum((torch.outer(dz[t], X[0, t]) for t in range(T)), torch.zeros(E, D).double()))


def test_equation_5_probabilities_as_weights() -> None:
    p, s = (X[0] @ W.T).softmax(-1), slopes()
    choice = MoeCase(1, T, D, H, E, top_k=2, router="expert_choice", capacity_factor=1.0, dtype="fp64")
    for case in (SWITCH, choice):
        chosen = weights(case, X[0] @ W.T) > 0
        same(through_the_weights(case), p * (chosen * s - (chosen * p * s).sum(-1, keepdim=True)))


def test_equation_6_probabilities_scaled_to_a_sum_of_1() -> None:
    z, s = X[0] @ W.T, slopes()
    w = weights(MIXTRAL, z)
    chosen = w > 0
    assert chosen.sum(-1).tolist() == T * [K]
    scaled = z.softmax(-1) * chosen
    same(w, scaled / scaled.sum(-1, keepdim=True))
    same(w, z.masked_fill(~chosen, -torch.inf).softmax(-1))
    dz = through_the_weights(MIXTRAL)
    same(dz, chosen * w * (s - (w * s).sum(-1, keepdim=True)))
    assert dz.sum(-1).abs().max() <= 1e-12 * dz.abs().max()
    assert (gradients(MoeCase(1, T, D, H, E, top_k=1, dtype="fp64"))[1] == 0).all()
    assert gradients(SWITCH)[1].abs().min() > 0


def balance(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L, f, P by their definitions."""
    size, experts = logits.shape
    p = logits.softmax(-1)
    f = torch.tensor([sum(int(row.argmax()) == e for row in p) / size for e in range(experts)], dtype=torch.float64)
    mean = torch.stack([sum((row[e] for row in p), torch.zeros(()).double()) / size for e in range(experts)])
    return experts * (f * mean).sum(), f, mean


def auxiliary(case: MoeCase, logits: Tensor) -> Tensor:
    return routing(case, logits.unsqueeze(0), UNIFORM).loss


GSHARD = MoeCase(1, T, D, H, E, router="gshard", dtype="fp64")


def test_equation_7_the_loss_of_balance() -> None:
    for seed in range(5):
        logits = draw(T, E, seed=seed)
        same(auxiliary(GSHARD, logits), balance(logits)[0])


def test_equation_8_its_gradient() -> None:
    logits = draw(T, E)
    p, f = logits.softmax(-1), balance(logits)[1]
    got = jacobian(lambda z: auxiliary(GSHARD, z), logits)
    same(got, E / T * p * (f - (f * p).sum(-1, keepdim=True)))
    even = MoeCase(1, 8, D, H, E, router="gshard", dtype="fp64")
    level = draw(8, E) + 20 * F.one_hot(torch.arange(8) % E, E)  # two tokens an expert, whatever else they think
    found = jacobian(lambda z: routing(even, z.unsqueeze(0), torch.zeros(1, 8)).loss, level)
    assert found.abs().max() <= 1e-15


def test_equation_9_one_and_what_shares_and_probabilities_vary_together() -> None:
    for seed in range(20):
        loss, f, mean = balance(draw(T, E, seed=seed) - 0.5 * seed * torch.arange(E).double())
        same(loss, 1 + E * ((f - 1 / E) * (mean - 1 / E)).sum())
        assert E * f.min() <= loss <= E * f.max()
    five = torch.tensor([[0.51, 0.49]] * 3 + [[1e-30, 1.0]] * 2).double().log()  # the example of the page
    loss, f, _ = balance(five)
    assert f.tolist() == pytest.approx([0.6, 0.4])
    assert float(loss) == pytest.approx(2 * (0.6 * 0.306 + 0.4 * 0.694))
    assert float(loss) == pytest.approx(0.92, abs=0.005)
    _, f, mean = balance(torch.zeros(T, E).double())  # all to one expert, and nobody sure
    assert float(E * (f * mean).sum()) == pytest.approx(1)
    assert f.max() == 1


def test_equation_10_where_probabilities_are_true_to_decisions() -> None:
    for choices in ([0, 0, 0, 1, 2, 2, 3, 3, 3], [0] * 9, [0, 1, 2, 3, 0, 1, 2, 3]):
        sure = 60.0 * F.one_hot(torch.tensor(choices), E).double()
        loss, f, mean = balance(sure)
        assert torch.allclose(f, mean, rtol=0, atol=1e-15)
        same(loss, E * (f**2).sum())
        same(loss, 1 + E * ((f - 1 / E) ** 2).sum())
        same(loss, 1 + (f.std(correction=0) / f.mean()) ** 2)
        assert loss >= 1 - 1e-12
        assert (abs(float(loss) - 1) < 1e-12) == (f.std() == 0)
    assert float(balance(60.0 * F.one_hot(torch.zeros(T).long(), E).double())[0]) == pytest.approx(E)


def test_equation_11_the_z_loss() -> None:
    logits = draw(T, E)
    sums = logits.exp().sum(-1).log()

    def z_loss(z: Tensor) -> Tensor:
        return (auxiliary(SWITCH, z) - auxiliary(GSHARD, z)) / Z_WEIGHT

    same(z_loss(logits), (sums**2).mean())
    same(jacobian(z_loss, logits), 2 / T * logits.softmax(-1) * sums.unsqueeze(-1))
    at_rest = logits - sums.unsqueeze(-1)
    assert abs(float(z_loss(at_rest))) < 1e-14
    same(at_rest.softmax(-1), logits.softmax(-1))
    shifted = logits + 7
    same(auxiliary(GSHARD, shifted), auxiliary(GSHARD, logits))
    assert z_loss(shifted) > z_loss(logits) + 7
