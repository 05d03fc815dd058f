"""The equations of docs/derivations/parallel.md on rounding, in bf16, float32 and float64, and with torch's AdamW."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor, nn

from archbench.models.parallel import ParallelCase, make_inputs
from archbench.models.parallel._model import LanguageModel, language_model, loss_of, optimizer_of

pytestmark = pytest.mark.usefixtures("one_thread")

U, V = 2.0**-8, 2.0**-24
BETAS = (0.9, 0.95)
EPSILON = 1e-6
RATE = 3e-4  # of the track's optimizer
CASE = ParallelCase(layers=2, dim=32, length=15, batch=4, micro_batches=2)
ULPS = 1 + 1e-12  # float64 rounds as well


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def in_bf16(x: Tensor) -> Tensor:
    return x.bfloat16().double()


def test_equation_51_rounding_to_bf16() -> None:
    between = 1 + torch.arange(2**18, dtype=torch.float64) / 2**18  # every distance to a neighbour, four times over
    for x in (between, -between * 2.0**40, draw(100_000) * 1e-6):
        x = x.float().double()  # float32 first, as gradients are
        off = (in_bf16(x) - x).abs() / x.abs()
        assert off.max() <= U
        assert off.max() > 0.99 * U


def test_equation_52_rounding_to_bf16_in_the_mean() -> None:
    x = torch.exp2(torch.linspace(-3, 5, 2**20, dtype=torch.float64)).float().double()
    found = ((in_bf16(x) - x) / x).square().mean().sqrt()
    assert found == pytest.approx(U * math.sqrt(1 / (8 * math.log(2))), rel=0.01)
    assert found == pytest.approx(2**-9.24, rel=0.01)


def compressed_mean(gradients: Tensor) -> Tensor:
    """As DDP's bf16 hook does it: rounded, divided, then added on the way round."""
    parts = gradients.bfloat16().div(len(gradients))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.double()


def test_equation_53_gradients_summed_in_bf16() -> None:
    for ranks in (2, 4, 8):
        for seed in range(3):
            g = draw(ranks, 200_000, seed=seed).float().double()
            off = (compressed_mean(g) - g.mean(0)).abs()
            bound = ((1 + U) ** ranks - 1) / ranks * g.abs().sum(0)
            assert (off <= bound).all()
            assert (off / bound).max() > 0.3
            assert (off / g.mean(0).abs()).max() > 10, "where ranks cancel, nothing is left of it"
    agree = draw(1, 200_000).float().double().abs().repeat(2, 1)
    assert ((compressed_mean(agree) - agree[0]).abs() / agree[0]).max() <= 2 * U < 0.008


def test_equation_54_sums_of_products_in_float32() -> None:
    worst = 0.0
    for n in (8, 60, 2048):
        x, y = (draw(n, 4, seed=seed).float() for seed in (1, 2))
        for a, b in ((x, y), (x.abs(), y.abs()), (torch.full_like(x, 1 / 3), torch.full_like(y, 0.7))):
            products = a.double() * b.double()  # exact
            bound = n * V / (1 - n * V) * products.abs().sum(0)
            in_turn = torch.zeros(4)
            for one, other in zip(a, b, strict=True):
                in_turn = in_turn + one * other
            sums = [in_turn, (a * b).sum(0), (a * b).flip(0).cumsum(0)[-1], torch.einsum("nc,nc->c", a, b)]
            for got in sums:
                exact = torch.tensor([math.fsum(column) for column in products.T.tolist()], dtype=torch.float64)
                assert ((got.double() - exact).abs() <= bound).all()
                worst = max(worst, float(((got.double() - exact).abs() / bound).max()))
    assert worst > 0.1, "the bound is of the right size"
    layer, x, dy = nn.Linear(8, 5), draw(60, 8).float(), draw(60, 5, seed=1).float()
    (got,) = torch.autograd.grad(layer(x), layer.weight, dy)
    bound = 60 * V / (1 - 60 * V) * (dy.double().abs().T @ x.double().abs())
    assert ((got.double() - dy.double().T @ x.double()).abs() <= bound).all()


def weights(count: int) -> tuple[Tensor, Tensor]:
    """w and omega of equation (55)."""
    powers = torch.arange(count - 1, -1, -1, dtype=torch.float64)
    found = [torch.tensor(beta, dtype=torch.float64) ** powers for beta in BETAS]
    return found[0] / found[0].sum(), found[1] / found[1].sum()


def bound_of(count: int) -> float:
    """R_t."""
    w, omega = weights(count)
    return float((w**2 / omega).sum().sqrt())


def z_of(history: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Gradients (t, ...) -> the last update, in units of the learning rate."""
    w, omega = (side.view(-1, *[1] * (history.dim() - 1)) for side in weights(len(history)))
    return (w * history).sum(0) / ((omega * history**2).sum(0).sqrt() + epsilon)


def trained(history: Tensor, decay: float = 0.0, start: float = 0.0) -> Tensor:
    """Parameters (t + 1, n) that torch's AdamW makes of gradients (t, n), before and after each update."""
    parameter = nn.Parameter(torch.full(history.shape[1:], start, dtype=torch.float64))
    optimizer = torch.optim.AdamW([parameter], lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=decay)
    seen = [parameter.detach().clone()]
    for gradient in history:
        parameter.grad = gradient.clone()
        optimizer.step()
        seen.append(parameter.detach().clone())
    return torch.stack(seen)


def test_equation_55_no_update_is_larger() -> None:
    history = draw(30, 5000) * torch.exp(3 * draw(30, 5000, seed=1))
    moved = trained(history).diff(dim=0) / RATE
    for t in range(1, 31):
        assert torch.allclose(-moved[t - 1], z_of(history[:t]), rtol=1e-6, atol=1e-10)
        assert moved[t - 1].abs().max() <= bound_of(t) * (1 + 1e-9)
        w, omega = weights(t)
        assert float(z_of((w / omega)[:, None], 0.0)[0]) == pytest.approx(bound_of(t), rel=1e-12), "and one is as large"
    assert bound_of(1) == 1
    assert 1.164 < max(bound_of(t) for t in range(1, 500)) < 1.165


def test_equation_56_a_relative_error_of_the_first_gradient() -> None:
    g = torch.logspace(-12, 3, 3001, dtype=torch.float64)[None]
    for delta in (-0.5, -0.01, 2 * U, 1.0):
        off = (z_of(g * (1 + delta)) - z_of(g)).abs()
        assert off.max() <= abs(math.log1p(delta)) / 4 * ULPS
        if abs(delta) < 0.1:
            assert off.max() > abs(math.log1p(delta)) / 4 * 0.99
            assert g[0, off.argmax()] == pytest.approx(EPSILON, rel=0.05)


def model(dtype: torch.dtype = torch.float64) -> LanguageModel:
    return language_model(CASE).to(dtype)


def gradients(network: LanguageModel) -> dict[str, Tensor]:
    tokens = torch.from_numpy(make_inputs(CASE, 0, "cpu")[0][0])
    loss_of(network(tokens[:, :-1]), tokens[:, 1:]).backward()
    return {name: p.grad.double() for name, p in network.named_parameters() if p.grad is not None}


def test_equation_57_an_absolute_error() -> None:
    g = torch.cat([draw(20_000) * scale for scale in (1e-9, 1e-7, 1e-6, 1e-4)])[None]
    for eta in (1e-9, 1e-7, 1e-6, 1e-3):
        bound = 2 * eta / (2 * EPSILON + eta)
        for sign in (-1, 1):
            assert (z_of(g + sign * eta) - z_of(g)).abs().max() <= bound * ULPS
        change = torch.tensor([[-eta / 2, eta / 2]], dtype=torch.float64)
        assert float(z_of(change).diff()) == pytest.approx(bound, rel=1e-12)
    exact, rounded = gradients(model()), gradients(model(torch.float32))
    for name in exact:
        if name.endswith("key.bias"):
            assert exact[name].abs().max() < 1e-15, "there is none"
            assert 0 < rounded[name].abs().max() < 1e-3 * EPSILON, "but rounding"
        else:
            assert exact[name].abs().max() > 1e-5


def test_equation_58_relative_errors_of_all_gradients() -> None:
    largest = 0.0
    for seed in range(40):
        for t in (1, 2, 5, 20):
            history = (draw(t, seed=seed) * torch.exp(2 * draw(t, seed=seed + 99))).requires_grad_()
            (slope,) = torch.autograd.grad(z_of(history), history)
            history = history.detach()
            worst = float((slope * history).abs().sum())  # signs chosen against us, over delta
            assert worst <= 2 * bound_of(t)
            largest = max(largest, worst / (2 * bound_of(t)))
            off = z_of(history * (1 + 1e-7 * (slope * history).sign())) - z_of(history)
            assert float(off) == pytest.approx(1e-7 * worst, rel=1e-4, abs=1e-13)
    assert largest > 0.4


def test_equation_59_a_sum_in_place_of_a_mean() -> None:
    g = torch.logspace(-12, 3, 3001, dtype=torch.float64)[None]
    for ranks in (2, 4, 8):
        off = (z_of(ranks * g) - z_of(g)).abs()
        said = EPSILON * g * (1 - 1 / ranks) / ((g + EPSILON) * (g + EPSILON / ranks))
        assert torch.allclose(off, said[0], rtol=1e-9, atol=1e-12)
        assert off.max() == pytest.approx((math.sqrt(ranks) - 1) / (math.sqrt(ranks) + 1), rel=1e-4)
        assert g[0, off.argmax()] == pytest.approx(EPSILON / math.sqrt(ranks), rel=0.02)

    def updated(dtype: torch.dtype, times: float) -> Tensor:
        network = model(dtype)
        gradients(network)
        for p in network.parameters():
            assert p.grad is not None
            p.grad *= times
        optimizer_of(network).step()
        return torch.cat([p.detach().double().flatten() for p in network.parameters()]) / RATE

    right = updated(torch.float64, 1)
    assert 0.16 < (updated(torch.float64, 2) - right).abs().max() < 0.172
    assert (updated(torch.float32, 1) - right).abs().max() < 1.5e-3


def test_equation_60_sums_over_a_parameter() -> None:
    n = 1000
    p = draw(n)
    for theta in (1e-6, 0.5):
        for shape in (torch.ones(n), draw(n, seed=1).sign(), p.sign(), 2 * torch.rand(n) - 1):
            off = theta * shape.double()
            signs = draw(n, seed=2).sign()
            assert off.sum().abs() <= n * theta * ULPS
            assert (signs @ off).abs() <= n * theta
            bound = 2 * theta * p.abs().sum() + n * theta**2
            assert ((p + off).square().sum() - p.square().sum()).abs() <= bound * ULPS
    assert float(((p + theta * p.sign()).square().sum() - p.square().sum()) / bound) == pytest.approx(1, rel=1e-12)
    history = draw(6, n) * torch.exp(3 * draw(6, n, seed=1))
    histories = [history, -history, draw(6, n, seed=2), torch.ones(6, n), -torch.ones(6, n)]
    for decay in (0.0, 0.1):
        ends = [trained(one.double(), decay, start=1.0) for one in histories]
        for t in range(1, 7):
            furthest = max((one[t] - other[t]).abs().max() for one in ends for other in ends)
            assert furthest <= 2 * RATE * sum(bound_of(i) for i in range(1, t + 1)) * ULPS
        assert furthest > 0.85 * 2 * RATE * 6
