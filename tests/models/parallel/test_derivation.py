"""The equations of docs/derivations/parallel.md on what ranks compute: gradients of parts, products cut over ranks."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from archbench.models.parallel import ParallelCase, make_inputs
from archbench.models.parallel._model import Block, LanguageModel, language_model, loss_of

pytestmark = pytest.mark.usefixtures("one_thread")

CASE = ParallelCase(layers=2, dim=32, length=15, batch=8, micro_batches=2, heads=8)
LENGTH, WIDTH = CASE.length, CASE.dim
RANKS = (2, 4, 8)


def same(got: Any, want: Any) -> None:
    got, want = (torch.as_tensor(side, dtype=torch.float64) for side in (got, want))
    assert got.shape == want.shape
    assert torch.linalg.norm(got - want) <= 1e-10 * torch.linalg.norm(want)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def model() -> LanguageModel:
    """In float64, with weights that are not small: a block that adds nearly nothing hides mistakes."""
    made = language_model(CASE).double()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=i) * 0.3)
    return made


def batch() -> Tensor:
    return torch.from_numpy(make_inputs(CASE, 0, "cpu")[0][0])


def loss(network: nn.Module, tokens: Tensor) -> Tensor:
    return loss_of(network(tokens[:, :-1]), tokens[:, 1:])


def gradient(network: nn.Module, tokens: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(network, tokens), list(network.parameters()))])


def test_equation_1_a_mean_over_sequences_that_do_not_meet() -> None:
    network, tokens = model(), batch()
    alone = [loss(network, one[None]) for one in tokens]
    same(loss(network, tokens).detach(), torch.stack(alone).mean().detach())
    for normed, meets in ((nn.LayerNorm(WIDTH), False), (nn.BatchNorm1d(WIDTH), True)):
        normed, x = normed.double(), draw(8, WIDTH)
        assert torch.allclose(normed(x)[:2], normed(x[:2])) is not meets


def test_equation_2_parts_of_any_size() -> None:
    network, tokens = model(), batch()
    parts = tokens.split([1, 5, 2])
    same(sum(len(part) / len(tokens) * gradient(network, part) for part in parts), gradient(network, tokens))


def test_equation_3_parts_of_equal_size() -> None:
    network, tokens = model(), batch()
    for ranks in RANKS:
        parts = [gradient(network, part) for part in tokens.chunk(ranks)]
        same(torch.stack(parts).mean(0), gradient(network, tokens))
    loss(network, tokens).backward()  # one after another, as micro-batches
    at_once = torch.cat([p.grad.flatten() for p in network.parameters()])
    network.zero_grad()
    for part in tokens.chunk(4):
        (loss(network, part) / 4).backward()
    same(torch.cat([p.grad.flatten() for p in network.parameters()]), at_once)


def test_equation_4_what_unequal_parts_miss() -> None:
    network, tokens = model(), batch()
    parts = tokens.split([1, 5, 2])
    found = torch.stack([gradient(network, part) for part in parts])
    shares = torch.tensor([len(part) / len(tokens) for part in parts], dtype=torch.float64)
    whole = gradient(network, tokens)
    same(found.mean(0) - whole, ((1 / 3 - shares)[:, None] * found).sum(0))
    assert torch.linalg.norm(found.mean(0) - whole) > 0.1 * torch.linalg.norm(whole)
    same((found * 3 * shares[:, None]).mean(0), whole)


class Wire:
    """An all-reduce between ranks of one process, counted in numbers summed."""

    def __init__(self) -> None:
        self.forward: list[int] = []
        self.backward: list[int] = []

    def shared(self, x: Tensor, ranks: int) -> tuple[Tensor, ...]:
        """The same input for every rank; its gradient is a sum over them."""
        wire = self

        class Shared(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
                return tuple(x.clone() for _ in range(ranks))

            @staticmethod
            def backward(ctx: Any, *gradients: Tensor) -> Tensor:
                wire.backward.append(gradients[0].numel())
                return torch.stack(gradients).sum(0)

        return Shared.apply(x)

    def summed(self, parts: list[Tensor]) -> Tensor:
        self.forward.append(parts[0].numel())
        return torch.stack(parts).sum(0)


class Cut:
    """A rank's part of a block: heads and columns of its own, rows behind them."""

    def __init__(self, block: Block, rank: int, ranks: int) -> None:
        def columns(layer: nn.Linear) -> tuple[Tensor, Tensor]:
            return layer.weight.chunk(ranks, 0)[rank], layer.bias.chunk(ranks, 0)[rank]

        self.inputs = [columns(part) for part in (block.query, block.key, block.value)]
        self.output = block.output.weight.chunk(ranks, 1)[rank]
        self.up = columns(block.up)
        self.down = block.down.weight.chunk(ranks, 1)[rank]
        self.whole = [*block.attention_norm.parameters(), *block.feed_forward_norm.parameters()]
        self.whole += [block.output.bias, block.down.bias]

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = (F.linear(x, *part).unflatten(-1, (-1, WIDTH // CASE.heads)).transpose(1, 2) for part in self.inputs)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    def held(self) -> int:
        """Numbers on the rank."""
        cut = [tensor for part in (*self.inputs, self.up) for tensor in part]
        return sum(tensor.numel() for tensor in (*cut, self.output, self.down, *self.whole))


def cut_block(block: Block, x: Tensor, ranks: int, wire: Wire) -> Tensor:
    parts = [Cut(block, rank, ranks) for rank in range(ranks)]
    seen = wire.shared(block.attention_norm(x), ranks)
    mixed = [F.linear(part.attention(one), part.output) for part, one in zip(parts, seen, strict=True)]
    x = x + wire.summed(mixed) + block.output.bias
    seen = wire.shared(block.feed_forward_norm(x), ranks)
    fed = [F.linear(F.gelu(F.linear(one, *part.up)), part.down) for part, one in zip(parts, seen, strict=True)]
    return x + wire.summed(fed) + block.down.bias


def block() -> Block:
    found = model()[1]
    assert isinstance(found, Block)
    return found


def test_equation_31_columns_need_nothing_from_elsewhere() -> None:
    x, a = draw(6, WIDTH), draw(WIDTH, 4 * WIDTH, seed=1)
    for ranks in RANKS:
        same(torch.cat([F.gelu(x @ part) for part in a.chunk(ranks, 1)], 1), F.gelu(x @ a))
        rows = zip(x.chunk(ranks, 1), a.chunk(ranks, 0), strict=True)
        assert not torch.allclose(sum(F.gelu(part @ row) for part, row in rows), F.gelu(x @ a)), "rows would not do"


def test_equation_32_columns_meet_rows() -> None:
    x, a, c = draw(6, WIDTH), draw(WIDTH, 4 * WIDTH, seed=1), draw(4 * WIDTH, WIDTH, seed=2)
    for ranks in RANKS:
        pairs = zip(a.chunk(ranks, 1), c.chunk(ranks, 0), strict=True)
        same(sum(F.gelu(x @ columns) @ rows for columns, rows in pairs), F.gelu(x @ a) @ c)


def test_equation_33_heads_are_columns() -> None:
    found, x = block(), draw(2, LENGTH, WIDTH)
    whole = Cut(found, 0, 1)
    for ranks in RANKS:
        parts = [Cut(found, rank, ranks) for rank in range(ranks)]
        heads = [part.attention(x) for part in parts]
        same(torch.cat(heads, -1).detach(), whole.attention(x).detach())
        summed = sum(F.linear(one, part.output) for one, part in zip(heads, parts, strict=True))
        same(summed.detach(), F.linear(whole.attention(x), whole.output).detach())


def test_equation_34_the_gradient_of_a_shared_input_is_a_sum() -> None:
    x, a, dh = draw(6, WIDTH), draw(WIDTH, 4 * WIDTH, seed=1), draw(6, 4 * WIDTH, seed=2)
    (want,) = torch.autograd.grad(x.requires_grad_() @ a, x, dh)
    for ranks in RANKS:
        same(sum(g @ part.T for g, part in zip(dh.chunk(ranks, 1), a.chunk(ranks, 1), strict=True)), want)
    found, x, dy = block(), draw(2, LENGTH, WIDTH).requires_grad_(), draw(2, LENGTH, WIDTH, seed=3)
    wanted = torch.autograd.grad(found(x), [x, *found.parameters()], dy)
    for ranks in RANKS:
        got = torch.autograd.grad(cut_block(found, x, ranks, Wire()), [x, *found.parameters()], dy)
        for mine, theirs in zip(got, wanted, strict=True):
            # The keys' bias has no gradient (equation 57), so there is nothing to be relative to.
            assert torch.linalg.norm(mine - theirs) <= 1e-10 * torch.linalg.norm(dy)


def test_equation_35_four_sums_a_block() -> None:
    network, x = model(), draw(CASE.batch, LENGTH, WIDTH).requires_grad_()
    for ranks in RANKS:
        wire, y = Wire(), x
        for part in list(network)[1:-1]:
            y = cut_block(part, y, ranks, wire)
        y.sum().backward()
        tensor = CASE.batch * LENGTH * WIDTH
        assert wire.forward == wire.backward == [tensor] * (2 * CASE.layers)
        sent = sum(2 * (ranks - 1) * tensor // ranks * 4 for tensor in wire.forward + wire.backward)  # by equation (6)
        assert sent == 4 * CASE.layers * 2 * (ranks - 1) * CASE.batch * LENGTH * WIDTH * 4 // ranks


def test_equation_36_next_to_an_all_reduce_of_the_gradients() -> None:
    for width, tokens, rough in ((256, 16 * 128, 2.67), (512, 16 * 128, 1.33), (1024, 3 * 1024, 1.0)):
        parameters = sum(p.numel() for p in Block(ParallelCase(1, width, LENGTH, 4)).parameters())
        assert parameters == 12 * width**2 + 13 * width
        assert 4 * tokens * width / parameters == pytest.approx(rough, rel=0.01)
        assert 4 * tokens * width / parameters == pytest.approx(tokens / (3 * width), rel=0.01)


def test_equation_37_what_a_rank_holds_of_a_block() -> None:
    for ranks in (1, *RANKS):
        held = {Cut(block(), rank, ranks).held() for rank in range(ranks)}
        assert held == {(12 * WIDTH**2 + 7 * WIDTH) // ranks + 6 * WIDTH}
    assert min(held) > sum(p.numel() for p in block().parameters()) // 8, "not everything is cut"


class Amount(TorchDispatchMode):
    """Counts the numbers that operations write: what an optimizer does."""

    written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dim():
            self.written += out.numel()
        return out


def step_of(tensors: list[Tensor]) -> int:
    parameters = [nn.Parameter(tensor.detach().clone()) for tensor in tensors]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(parameters, foreach=False)
    with Amount() as amount:
        optimizer.step()
    return amount.written


def test_equation_50_replicas_repeat_the_optimizer() -> None:
    """Work in numbers written by a real AdamW; the gradient's work is any amount that ranks share."""
    tensors = [p.detach() for p in model().parameters()]
    one, shared = step_of(tensors), 10 * step_of(tensors)
    for ranks in RANKS:
        replica = step_of(tensors)
        shard = step_of([t.flatten().chunk(ranks)[0] for t in tensors])
        assert replica == one
        assert shard == one // ranks
        gain = (shared + one) / (shared / ranks + replica)
        assert gain == pytest.approx((10 + 1) / (10 / ranks + 1), rel=1e-12)
        assert gain < (shared + one) / one
        assert (shared + one) / (shared / ranks + shard) == pytest.approx(ranks, rel=1e-12)
