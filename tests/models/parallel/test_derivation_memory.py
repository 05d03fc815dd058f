"""The equations of docs/derivations/parallel.md on memory, by counting what autograd keeps."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from archbench.models.parallel import TRACK, ParallelCase
from archbench.models.parallel._model import LanguageModel, language_model, loss_of, optimizer_of

pytestmark = pytest.mark.usefixtures("one_thread")

CASE = ParallelCase(layers=3, dim=32, length=15, batch=4, micro_batches=2)
CASES = (CASE, replace(CASE, layers=2, dim=48, heads=6, length=9, batch=6), replace(CASE, layers=1, vocabulary=1000))


class Kept:
    """What autograd keeps while this is entered: bytes of different storages alive, now and at most.

    Parameters are there anyway. ``floating`` False counts whole numbers instead.
    """

    def __init__(self, network: nn.Module, *, floating: bool | None = True) -> None:
        self.there = {p.untyped_storage().data_ptr() for p in network.parameters()}
        self.floating = floating
        self.uses: dict[int, int] = {}
        self.now = self.most = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: Held(self, tensor), lambda held: held.tensor
        )

    def __enter__(self) -> Kept:
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)

    def counts(self, tensor: Tensor) -> bool:
        kind = self.floating is None or tensor.is_floating_point() is self.floating
        return kind and tensor.untyped_storage().data_ptr() not in self.there

    def used(self, tensor: Tensor, change: int) -> None:
        storage = tensor.untyped_storage()
        before = self.uses.get(storage.data_ptr(), 0)
        self.uses[storage.data_ptr()] = before + change
        if 0 in (before, before + change):
            self.now += change * storage.nbytes()
            self.most = max(self.most, self.now)


class Held:
    """A tensor in autograd's keeping, until its node lets go."""

    def __init__(self, kept: Kept, tensor: Tensor) -> None:
        self.tensor, self.kept = tensor, kept if kept.counts(tensor) else None
        if self.kept:
            self.kept.used(tensor, 1)

    def __del__(self) -> None:
        if self.kept:
            self.kept.used(self.tensor, -1)


def block_numbers(case: ParallelCase) -> int:
    """Of equation (40), a token."""
    return 16 * case.dim + case.heads + 4


def update(case: ParallelCase, network: LanguageModel, kept: Kept, *, again: bool = False) -> None:
    """Forward and backward of a batch; ``again``: blocks do their forward a second time."""
    tokens = torch.randint(0, case.vocabulary, (2, case.batch, case.length))
    with kept:
        x = tokens[0].clone()
        for index, part in enumerate(network):
            x = checkpoint(part, x, use_reentrant=True) if again and 0 < index <= case.layers else part(x)
        loss = loss_of(x, tokens[1].clone())
        del x
        loss.backward()
    assert kept.now == 0, "a backward lets go of everything"


def storages(tensors: Iterable[Tensor]) -> int:
    """Bytes of different storages."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Without the count of steps, one number a tensor."""
    return [value for state in optimizer.state.values() for value in state.values() if value.dim()]


def numbers(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_equation_38_parameters_of_the_model() -> None:
    for case in (*CASES, *TRACK.bench_cases[:1]):
        n, d, v, length = case.layers, case.dim, case.vocabulary, case.length
        assert numbers(language_model(case)) == n * (12 * d**2 + 13 * d) + 2 * v * d + length * d + 2 * d


def test_equation_39_bytes_of_a_parameter() -> None:
    network = language_model(CASE)
    count = numbers(network)
    optimizer = optimizer_of(network)
    update(CASE, network, Kept(network))
    optimizer.step()
    parameters = list(network.parameters())
    kinds = [parameters, [p.grad for p in parameters if p.grad is not None], states(optimizer)]
    assert [storages(kind) / count for kind in kinds] == [4, 4, 8]

    masters = [nn.Parameter(p.detach().float().clone()) for p in parameters]
    half = language_model(CASE).bfloat16()
    update(CASE, half, Kept(half))
    optimizer = torch.optim.AdamW(masters)
    for master, working in zip(masters, half.parameters(), strict=True):
        assert working.grad is not None
        master.grad = working.grad.float()
    optimizer.step()
    kinds = [
        list(half.parameters()),
        [p.grad for p in half.parameters() if p.grad is not None],
        masters,
        states(optimizer),
    ]
    assert [storages(kind) / count for kind in kinds] == [2, 2, 4, 8]


def test_equation_40_activations_of_a_block() -> None:
    for case in CASES:
        block = language_model(case)[1]
        with Kept(block) as kept:
            y = block(torch.randn(case.batch, case.length, case.dim, requires_grad=True))
            assert kept.now == 4 * case.batch * case.length * block_numbers(case)
        del y
        with Kept(block, floating=False) as kept:
            y = block(torch.randn(case.batch, case.length, case.dim, requires_grad=True))
            assert kept.now == 0
        del y


def test_equation_41_activations_of_the_model() -> None:
    for case in CASES:
        network, tokens = language_model(case), case.batch * case.length
        kept = Kept(network)
        update(case, network, kept)
        a_token = case.layers * block_numbers(case) + 2 * case.dim + case.vocabulary + 2
        assert kept.most == 4 * tokens * a_token + 4
        whole = Kept(network, floating=False)
        update(case, network, whole)
        assert whole.most == 8 * (2 * tokens + case.length)


def test_equation_42_activations_where_blocks_go_forward_again() -> None:
    larger = []
    for case in CASES:
        network, tokens = language_model(case), case.batch * case.length
        most = Kept(network)
        update(case, network, most, again=True)
        head, block = 2 * case.dim + case.vocabulary + 2, block_numbers(case) - case.dim
        larger.append(head > block)
        assert most.most == 4 * tokens * (case.layers * case.dim + max(head, block)) + 4 * (head > block)
    assert set(larger) == {True, False}


class Stage:
    """Two blocks of the model as stage k of K, alone: gradients and inputs come from nowhere."""

    def __init__(self, parts: int, *, again: bool = False) -> None:
        self.case = replace(CASE, layers=2, batch=8)
        self.blocks = nn.Sequential(*list(language_model(self.case))[1:-1])
        self.shape = (self.case.batch // parts, self.case.length, self.case.dim)
        self.kept = Kept(self.blocks)
        self.again = again
        self.outputs: dict[int, Tensor] = {}

    def forward(self, part: int) -> None:
        x = torch.randn(self.shape, requires_grad=True)
        self.outputs[part] = checkpoint(self.blocks, x, use_reentrant=True) if self.again else self.blocks(x)

    def forward_once(self, part: int) -> None:
        self.outputs[part] = self.blocks(torch.randn(self.shape, requires_grad=True))

    def backward(self, part: int) -> None:
        self.outputs.pop(part).backward(torch.randn(self.shape))

    def run(self, order: Iterable[tuple[Callable[[int], None], int]]) -> int:
        with self.kept:
            for what, part in order:
                what(part)
        assert self.kept.now == 0
        return self.kept.most

    def gpipe(self, parts: int) -> int:
        return self.run(
            [(self.forward, m) for m in range(parts)] + [(self.backward, m) for m in reversed(range(parts))]
        )

    def one_f_one_b(self, stage: int, stages: int, parts: int) -> int:
        ahead = min(stages - stage, parts)
        order = [(self.forward, m) for m in range(ahead)]
        for m in range(parts):
            order.append((self.backward, m))
            if m + ahead < parts:
                order.append((self.forward, m + ahead))
        return self.run(order)


def test_equation_43_activations_under_way_in_a_pipeline() -> None:
    for parts in (1, 2, 4, 8):
        stage = Stage(parts)
        one = 4 * math.prod(stage.shape[:2]) * 2 * block_numbers(stage.case)
        assert stage.gpipe(parts) == parts * one
        for k in range(4):
            assert Stage(parts).one_f_one_b(k, 4, parts) == min(4 - k, parts) * one
        # Two stages of the whole batch keep what each of two replicas keeps: half the batch, all blocks.
        halved = replace(stage.case, layers=4, batch=4)
        blocks = nn.Sequential(*list(language_model(halved))[1:-1])
        with Kept(blocks) as kept:
            y = blocks(torch.randn(4, halved.length, halved.dim, requires_grad=True))
            assert kept.now == parts * one
        del y


def test_equation_44_activations_of_a_stage_that_goes_forward_again() -> None:
    found = []
    for parts in (1, 2, 4, 8):
        stage = Stage(parts, again=True)
        x = 4 * math.prod(stage.shape)
        one = 4 * math.prod(stage.shape[:2]) * 2 * block_numbers(stage.case)
        found.append(stage.gpipe(parts))
        assert found[-1] == (parts - 1) * x + one
        # The last one comes back first: it may be kept at no cost.
        ahead = [(stage.forward, m) for m in range(parts - 1)] + [(stage.forward_once, parts - 1)]
        assert stage.run(ahead + [(stage.backward, m) for m in reversed(range(parts))]) == found[-1]
    assert found == sorted(found, reverse=True)


def test_equation_45_the_largest_batch_under_a_cap() -> None:
    network = language_model(CASE)

    def held(batch: int) -> int:
        kept = Kept(network, floating=None)
        update(replace(CASE, batch=batch, micro_batches=1, world=1), network, kept)
        return 16 * numbers(network) + kept.most

    each = held(2) - held(1)
    start = held(1) - each
    assert [held(b) for b in (3, 5, 9)] == [start + b * each for b in (3, 5, 9)]
    for cap in (start + 4 * each, start + 5 * each - 1, start + 7 * each + 1):
        largest = (cap - start) // each
        assert held(largest) <= cap < held(largest + 1)
