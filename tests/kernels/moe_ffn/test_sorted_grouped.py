"""Grouped products: gradients by hand, filled-up rows, the path of a GPU, and nothing shared between calls."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor  # noqa: E402 - the skip comes before what needs torch
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from archbench.kernels.moe_ffn import TRACK, MoeCase  # noqa: E402
from archbench.kernels.moe_ffn import _grouped_mm as together  # noqa: E402
from archbench.kernels.moe_ffn import _products as products  # noqa: E402
from archbench.kernels.moe_ffn._grouped import STEP, grouped_ffn  # noqa: E402
from archbench.kernels.moe_ffn._routing import Routing  # noqa: E402
from archbench.kernels.moe_ffn.sorted_grouped import CONTENDER  # noqa: E402

ACTIVATIONS: tuple[products.Activation, ...] = ("swiglu", "relu")
COUNTS = [0, 1, STEP - 1, STEP, STEP + 1, 0, 3, 0]  # nobody first, in the middle and last
TOKENS, DIM, HIDDEN = 13, 16, 24


def routed(counts: list[int], tokens: int, dtype: torch.dtype, seed: int = 0) -> Routing:
    """Somebody's routing: an expert's tokens are in order and different, some tokens have none."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.randperm(tokens, generator=generator)[:count].sort().values for count in counts]
    weight_A = torch.rand(sum(counts), generator=generator, dtype=dtype)
    return Routing(torch.cat(chosen), weight_A, torch.tensor(counts), torch.zeros(()), torch.tensor(0))


def drawn(activation: str, dtype: torch.dtype, experts: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, w_in, w_out, dy."""
    generator = torch.Generator().manual_seed(seed)
    rows = (2 if activation == "swiglu" else 1) * HIDDEN
    shapes = ((TOKENS, DIM), (experts, rows, DIM), (experts, HIDDEN, DIM), (TOKENS, DIM))
    x, w_in, w_out, dy = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes)
    return x, w_in * DIM**-0.5, w_out * HIDDEN**-0.5, dy


def plain(x_ND: Tensor, routing: Routing, w_in_EFD: Tensor, w_out_EHD: Tensor, activation: str) -> Tensor:
    """One assignment after the other, each a vector."""
    y = [torch.zeros_like(x_ND[0]) for _ in x_ND]
    for token, weight, expert in zip(routing.token_A, routing.weight_A, routing.expert_A, strict=True):
        h_F = w_in_EFD[expert] @ x_ND[token]
        hidden_H = F.silu(h_F[:HIDDEN]) * h_F[HIDDEN:] if activation == "swiglu" else h_F.relu()
        y[token] = y[token] + weight * (hidden_H @ w_out_EHD[expert])
    return torch.stack(y)


def answers(call: Any, x: Tensor, routing: Routing, w_in: Tensor, w_out: Tensor, activation: str, dy: Tensor) -> Any:
    """y and the gradients of x, the weights of the assignments, w_in and w_out."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, routing.weight_A, w_in, w_out)]
    y = call(leaves[0], routing._replace(weight_A=leaves[1]), *leaves[2:], activation)
    return (y.detach(), *torch.autograd.grad(y, leaves, dy))


def assert_close(got: Any, want: Any, bound: float) -> None:
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        assert torch.linalg.norm(one.double() - other.double()) <= bound * torch.linalg.norm(other.double())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_answers_and_gradients_are_those_of_one_assignment_after_the_other(
    activation: products.Activation, dtype: torch.dtype, bound: float
) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    routing = routed(COUNTS, TOKENS, wide)
    x, w_in, w_out, dy = drawn(activation, dtype, len(COUNTS))
    got = answers(grouped_ffn, x, routing, w_in, w_out, activation, dy)
    precise = (tensor.double() for tensor in (x, w_in, w_out, dy))
    x, w_in, w_out, dy = precise
    exact = routing._replace(weight_A=routing.weight_A.double())
    assert_close(got, answers(plain, x, exact, w_in, w_out, activation, dy), bound)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_of_differences(activation: products.Activation) -> None:
    routing = routed([3, 0, 2], TOKENS, torch.float64)
    x, w_in, w_out, _ = drawn(activation, torch.float64, 3)

    def y_of(x: Tensor, weight_A: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        return grouped_ffn(x, routing._replace(weight_A=weight_A), w_in, w_out, activation)

    leaves = [tensor.requires_grad_() for tensor in (x, routing.weight_A, w_in, w_out)]
    assert torch.autograd.gradcheck(y_of, leaves, fast_mode=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_without_gradients_the_answer_is_the_same(activation: products.Activation) -> None:
    routing = routed(COUNTS, TOKENS, torch.float32)
    x, w_in, w_out, dy = drawn(activation, torch.float32, len(COUNTS))
    y, *_ = answers(grouped_ffn, x, routing, w_in, w_out, activation, dy)
    assert_close([grouped_ffn(x, routing, w_in, w_out, activation)], [y], 1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_torch_without_onednn_answers_the_same(
    activation: products.Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    routing = routed(COUNTS, TOKENS, torch.float32)
    x, w_in, w_out, _ = drawn(activation, torch.float32, len(COUNTS))
    want = grouped_ffn(x, routing, w_in, w_out, activation)
    monkeypatch.setattr(products, "by_onednn", lambda tensor: False)
    assert_close([grouped_ffn(x, routing, w_in, w_out, activation)], [want], 1e-6)


def test_a_token_nobody_answers_gets_zero_and_has_no_gradient() -> None:
    routing = routed([2, 1], TOKENS, torch.float32)
    x, w_in, w_out, dy = drawn("swiglu", torch.float32, 2)
    y, dx, *_ = answers(grouped_ffn, x, routing, w_in, w_out, "swiglu", dy)
    alone = torch.ones(TOKENS, dtype=torch.bool).index_fill(0, routing.token_A, False)
    assert alone.sum() >= TOKENS - 3
    for part in (y, dx):
        assert not part[alone].any()
        assert part[~alone].all()


def test_nobody_is_answered_where_the_list_is_empty() -> None:
    routing = routed([0, 0], TOKENS, torch.float32)
    x, w_in, w_out, dy = drawn("swiglu", torch.float32, 2)
    got = answers(grouped_ffn, x, routing, w_in, w_out, "swiglu", dy)
    assert [tuple(tensor.shape) for tensor in got] == [(TOKENS, DIM), (TOKENS, DIM), (0,), w_in.shape, w_out.shape]
    assert not any(tensor.any() for tensor in got)
    assert not grouped_ffn(x, routing, w_in, w_out).any()


def test_what_does_not_fit_together_is_refused_by_name() -> None:
    x, w_in, w_out, _ = drawn("relu", torch.float32, 2)
    with pytest.raises(ValueError, match=f"w_in has {HIDDEN} rows an expert, swiglu wants {2 * HIDDEN}"):
        grouped_ffn(x, routed([1, 1], TOKENS, torch.float32), w_in, w_out, "swiglu")


def test_a_second_derivative_is_refused_instead_of_wrong() -> None:
    x, w_in, w_out, dy = drawn("swiglu", torch.float32, 2)
    y = grouped_ffn(x.requires_grad_(), routed([2, 2], TOKENS, torch.float32), w_in, w_out)
    (dx,) = torch.autograd.grad(y, x, dy.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_a_backward_keeps_what_the_module_says() -> None:
    routing = routed([STEP, 2 * STEP - 3], 2 * TOKENS, torch.float32)
    x, w_in, w_out, _ = drawn("swiglu", torch.float32, 2)
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        grouped_ffn(torch.cat((x, x)).requires_grad_(), routing, w_in, w_out)
    rows = len(routing.token_A)
    wanted = [(2 * TOKENS, DIM), (rows,), tuple(w_in.shape), tuple(w_out.shape), (rows, DIM)]
    assert kept == [*wanted, (STEP, 2 * HIDDEN), (2 * STEP, 2 * HIDDEN)]  # h, filled up


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this torch has no grouped product")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("counts", [[5, 0, 9, 0], [0, 4, 4, 4]])
def test_all_experts_in_one_product_answer_as_the_loop_does(
    activation: products.Activation, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a GPU, through the product that torch has for CPUs."""
    routing = routed(counts, TOKENS, torch.float32)
    x, w_in, w_out, dy = drawn(activation, torch.bfloat16, len(counts))
    want = answers(grouped_ffn, x, routing, w_in, w_out, activation, dy)
    monkeypatch.setattr(together, "fits", lambda *tensors: True)
    got = answers(grouped_ffn, x, routing, w_in, w_out, activation, dy)
    assert_close(got, want, 1e-2)
    assert_close([grouped_ffn(x, routing, w_in, w_out, activation)], want[:1], 1e-2)


@pytest.mark.parametrize(
    ("dtype", "dim", "hidden", "fits"),
    [
        (torch.bfloat16, 16, 24, True),
        (torch.bfloat16, 12, 24, False),
        (torch.bfloat16, 16, 20, False),
        (torch.float32, 16, 24, False),
    ],
)
def test_one_product_for_all_is_asked_where_a_row_begins_where_a_gpu_can_load(
    dtype: torch.dtype, dim: int, hidden: int, fits: bool
) -> None:
    shapes = ((5, dim), (2, 2 * hidden, dim), (2, hidden, dim))
    assert not together.fits(*(torch.empty(*shape, dtype=dtype) for shape in shapes))
    with FakeTensorMode():
        on_gpu = [torch.empty(*shape, dtype=dtype, device="cuda") for shape in shapes]
    assert together.fits(*on_gpu) == fits


def test_answers_of_calls_that_overlap_stay_apart() -> None:
    """No call writes where another one reads: a second forward comes before the first backward, and threads meet."""
    case = MoeCase(2, 17, 24, 20, 4, backward=True)
    call = CONTENDER.build(case)
    sets = [TRACK.make_inputs(case, seed, "cpu") for seed in range(4)]

    def forward(inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs[:4]]
        return leaves, call(*leaves, inputs[4])

    work = TRACK.workload(case, call)
    alone = [work(*inputs) for inputs in sets]
    begun = [forward(inputs) for inputs in sets]
    for (leaves, y), inputs, want in zip(reversed(begun), reversed(sets), reversed(alone), strict=True):
        got = (y.detach(), *torch.autograd.grad(y, leaves, inputs[5]))
        assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(lambda inputs: work(*inputs), sets * 5), alone * 5, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
