"""The equations of docs/derivations/quantization.md on products, depth, compensation and the size of a network.

Layers and quantisers are the track's own. What is drawn is judged by its own standard error.
"""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor

from archbench.models.vit_int4._gptq import gptq
from archbench.models.vit_int4._layers import QuantLinear, QuantPatchEmbed, calibrate, quantised
from archbench.models.vit_int4._plan import Bits, Plan
from archbench.models.vit_int4._quantiser import WeightQuantiser
from archbench.models.vit_int4._vit import Size, VisionTransformer

PLAN = Plan(Bits(4, 4), Bits(8, 8), ranges="rows")
SIZES = (
    Size(32, 8, 96, 4, 3, 10),
    Size(28, 7, 32, 2, 2, 10, 1),
    Size(48, 16, 64, 1, 1, 100),
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(got: Tensor, want: Tensor, tolerance: float = 1e-10) -> None:
    assert got.shape == want.shape
    assert torch.linalg.norm(got - want) <= tolerance * torch.linalg.norm(want)


def layer() -> tuple[QuantLinear, Tensor]:
    """A layer of 4-bit weights and inputs in float64, calibrated, and inputs (9, 24) that are not centred."""
    x = draw(9, 24, seed=1) + 0.4
    found = QuantLinear(draw(7, 24), draw(7, seed=2), Bits(4, 4), "least_squares").double()
    calibrate(found, x)
    return found, x


def parts(found: QuantLinear, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of the letters: s (N, 1), n (N, K), t, m (M, K), z."""
    assert found.weights is not None
    assert found.inputs is not None
    t, z = found.inputs.step.detach(), found.inputs.zero.detach()
    m = (x / t + z).round().clamp(0, 15)
    return found.weights.step, found.weights.codes(found.weight).double(), t, m, z


def test_equation_11_steps_come_out_of_a_sum() -> None:
    found, x = layer()
    s, n, t, m, z = parts(found, x)
    whole = m.long() @ n.long().T  # whole numbers times whole numbers
    products = s.T * t * (whole.double() - z * n.sum(1))
    assert found.bias is not None
    same(found(x).detach(), products + found.bias.detach())


def test_equation_12_the_offset_goes_into_the_bias() -> None:
    found, x = layer()
    s, n, t, m, z = parts(found, x)
    weights, hat, offset = s * n, t * m, -t * z
    same(offset, found.inputs.offset.detach() if found.inputs else torch.zeros(()))
    assert found.bias is not None
    same(found(x).detach(), hat @ weights.T + (found.bias.detach() + offset * weights.sum(1)))


def test_equation_13_a_factor_moves_between_operands() -> None:
    w, x, c = draw(7, 24), draw(24, 9, seed=1), torch.exp(draw(24, seed=2))
    same((w * c) @ (x / c[:, None]), w @ x)
    x[3] *= 50  # a feature that is far larger than the rest costs a range all its levels
    c = x.abs().amax(1).sqrt() / w.abs().amax(0).sqrt()
    errors = []
    for weights, inputs in ((w, x.T), (w * c, x.T / c)):
        smooth = QuantLinear(weights, None, Bits(8, 8), "rows").double()
        calibrate(smooth, inputs)
        errors.append(float((smooth(inputs).T - w @ x).norm().detach()))
    assert errors[1] < 0.5 * errors[0]


def with_noise(x: Tensor, seed: int) -> Tensor:
    """Rounded after noise over one step, as in equation (3): right on average."""
    noise = torch.rand(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.5
    return (x / 1.1 + noise).round() * 1.1


def with_least_error(x: Tensor, seed: int) -> Tensor:
    """Of one bit: the error is large, so that its square is seen."""
    return x.sign() * x.abs().mean()


def to_four_bits(x: Tensor, seed: int) -> Tensor:
    rows = x.reshape(1, -1)
    return WeightQuantiser(rows, 4).double()(rows).detach().view_as(x)


@pytest.mark.parametrize(("rounded", "sign"), [(with_noise, 1), (with_least_error, -1), (to_four_bits, -1)])
def test_equation_24_a_product_of_rounded_operands(rounded: Callable[[Tensor, int], Tensor], sign: int) -> None:
    rows = []
    for seed in range(24):
        w, x = draw(48, 64, seed=seed), draw(64, 48, seed=100 + seed)
        w_hat, x_hat = rounded(w, 1000 + seed), rounded(x, 2000 + seed)
        pairs = ((w_hat @ x_hat, w @ x), (w_hat, w), (x_hat, x))
        rows.append([((hat - exact).square().sum() / exact.square().sum()).item() for hat, exact in pairs])
    off, of_w, of_x = torch.tensor(rows, dtype=torch.float64).T
    missed = off - (of_w + of_x + sign * of_w * of_x)
    deviation = float(missed.std()) / math.sqrt(len(missed))
    assert abs(float(missed.mean())) <= 4 * deviation
    assert 4 * deviation < 0.05 * float(off.mean())
    if rounded is to_four_bits:
        assert float(off.mean().sqrt()) == pytest.approx(0.15, abs=0.005)
    else:
        assert 8 * deviation < float((of_w * of_x).mean()), "the sign is seen"


@pytest.mark.parametrize("c", [0.05, 0.5, 1e9])
def test_equation_25_through_blocks(c: float) -> None:
    blocks, width, draws, error = 6, 32, 120, 0.15
    streams, errors = torch.empty(draws), torch.empty(draws)
    for number in range(draws):
        exact = draw(width, seed=number)
        given = exact.clone()
        for block in range(blocks):
            branch = draw(width, width, seed=1000 * (block + 1) + number) * math.sqrt(c / width)
            answer = branch @ given
            fresh = draw(width, seed=10_000 * (block + 1) + number) / math.sqrt(width)
            given = given + answer + error * answer.norm() * fresh
            exact = exact + branch @ exact
            scale = math.sqrt(1 + c)  # keeps the stream's size: c may be large
            given, exact = given / scale, exact / scale
        streams[number], errors[number] = exact.square().sum(), (given - exact).square().sum()
    want = (1 + c / (1 + c) * error**2) ** blocks - 1
    # Means of squares over all draws; the spread of their ratio by the linear terms of both.
    rest = errors - want * streams
    assert abs(float(rest.mean())) <= 4 * float(rest.std()) / math.sqrt(draws)
    assert 4 * float(rest.std()) / math.sqrt(draws) < 0.25 * want * float(streams.mean())


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (K, tokens) that are alike, their H, and its inverse."""
    x = draw(12, 5) @ draw(5, 200, seed=1) + 0.3 * draw(12, 200, seed=2)
    h = x @ x.T
    return x, h, torch.linalg.inv(h)


def test_equation_26_the_error_of_a_layer() -> None:
    x, h, _ = problem()
    delta = draw(12, seed=3)
    same((delta @ x).square().sum(), delta @ h @ delta)


def test_equation_27_the_best_compensation() -> None:
    _, h, inverse = problem()
    for k in (0, 4, 11):
        delta = 0.7 * inverse[k] / inverse[k, k]
        assert float(delta[k]) == pytest.approx(0.7)
        free = [i for i in range(12) if i != k]
        want = torch.linalg.solve(h[free][:, free], -0.7 * h[free, k])  # where the gradient of the rest is 0
        same(delta[free], want, 1e-8)


def test_equation_28_what_compensation_leaves() -> None:
    _, h, inverse = problem()
    for k in range(12):
        delta = 0.7 * inverse[k] / inverse[k, k]
        same(delta @ h @ delta, 0.7**2 / inverse[k, k], 1e-8)
        assert 0.49 / inverse[k, k] <= 0.49 * h[k, k]
    assert (1 / inverse.diag()).sum() < 0.2 * h.trace(), "inputs that are alike leave much to win"


def test_equation_29_a_column_that_is_done() -> None:
    _, h, inverse = problem()
    for k in (0, 5, 11):
        rest = [i for i in range(12) if i != k]
        smaller = inverse - torch.outer(inverse[:, k], inverse[k]) / inverse[k, k]
        same(smaller[rest][:, rest], torch.linalg.inv(h[rest][:, rest]), 1e-8)


def test_equation_30_the_cost_of_a_row() -> None:
    x, _, _ = problem()
    x = x[x.square().sum(1).argsort(descending=True)]  # the order in which columns are rounded
    h = x @ x.T
    inverse = torch.linalg.inv(h)
    upper = torch.linalg.cholesky(inverse, upper=True)
    same(upper.T @ upper, inverse, 1e-8)
    start = draw(1, 12, seed=4)
    quantiser = WeightQuantiser(start, 4).double()

    def nearest(values: Tensor) -> Tensor:
        return quantiser.codes(values) * quantiser.step

    w, cost = start.clone(), 0.0
    for k in range(12):
        error = (nearest(w)[0, k] - w[0, k]).item()
        rest = torch.linalg.inv(h[k:, k:])
        same(upper[k, k:] / upper[k, k], rest[0] / rest[0, 0], 1e-7)
        w[0, k:] += error * upper[k, k:] / upper[k, k]
        cost += error**2 / float(upper[k, k]) ** 2
    assert torch.allclose(nearest(w), w)
    same(((w - start) @ h @ (w - start).T)[0, 0], torch.tensor(cost, dtype=torch.float64), 1e-7)
    same(gptq(start, h, quantiser, damping=0.0), w)
    assert cost < 0.7 * ((nearest(start) - start) @ x).square().sum()
    assert (1 / upper.diag() ** 2).sum() < 0.5 * h.trace()


def parameters(size: Size) -> int:
    """Equation (35)."""
    d, pixels = size.dim, size.channels * size.patch**2
    return size.depth * (12 * d * d + 13 * d) + (pixels + 1) * d + (size.tokens + 3) * d + (d + 1) * size.classes


def test_equation_35_parameters() -> None:
    for size in SIZES:
        assert sum(p.numel() for p in VisionTransformer(size).parameters()) == parameters(size)
    assert parameters(Size(224, 16, 192, 12, 3, 1000)) == 5_717_416, "DeiT-Ti: 5.7 million, as published"


def file_bytes(model: VisionTransformer) -> float:
    """Counted in a network of 4-bit blocks: codes in their bits, all else in float32."""
    quantised_weights = {
        id(module.weight): module.weights.bits
        for module in model.modules()
        if isinstance(module, QuantLinear) and module.weights is not None
    }
    return sum(p.numel() * quantised_weights.get(id(p), 32) / 8 for p in model.parameters())


def test_equation_36_bytes_of_a_file() -> None:
    for size in SIZES:
        for bits, edges in ((4, 8), (8, 8), (4, 4)):
            model = quantised(VisionTransformer(size), Plan(Bits(bits, 4), Bits(edges, 8), ranges="rows"))
            assert isinstance(model.patch_embed, QuantPatchEmbed)
            d, pixels = size.dim, size.channels * size.patch**2
            want = size.depth * (1.5 * bits * d * d + 88 * d) + edges / 8 * (pixels + size.classes) * d
            want += 8 * (d + size.classes) + 4 * (size.tokens + 3) * d + 8 * (4 * size.depth + 2)
            assert file_bytes(model) == want
    small = quantised(VisionTransformer(SIZES[0]), PLAN)
    assert 4 * parameters(SIZES[0]) / file_bytes(small) > 6


def test_equation_37_what_a_block_shrinks_by() -> None:
    for d, said in ((40, 6.0), (96, 7.0), (384, 7.7)):
        size = Size(16, 8, d, 1, 1, 10)
        one, two = size, replace(size, depth=2)
        before = 4 * (parameters(two) - parameters(one))
        files = [file_bytes(quantised(VisionTransformer(s), PLAN)) for s in (one, two)]
        after = files[1] - files[0] - 32  # step and zero of the inputs of four matrices
        assert before / after == (48 * d + 52) / (6 * d + 88)
        assert before / after == pytest.approx(said, abs=0.05)
        assert (before / after > 6) == (d >= 40)
    assert (48 * 39 + 52) / (6 * 39 + 88) < 6 < (48 * 40 + 52) / (6 * 40 + 88)
