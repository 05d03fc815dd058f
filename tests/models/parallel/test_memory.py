"""Memory by kind, of updates whose sizes are known."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the memory looked at is torch's")

from archbench.models._memory import Allocation, gradients_seen, held_bytes, storages
from archbench.models._profile import profiled
from archbench.models.parallel._measures.memory import Peak, highest, kinds, peak_process_bytes

NUMBERS = 1 << 18  # of a parameter: 1 MiB
MIB = 1 << 20
SMALL = 4096  # scalars, and what the allocator rounds up


def looked_at(model: Any, optimizer: Any, step: Callable[[], object]) -> Any:
    step()  # optimizer state exists afterwards
    with gradients_seen(optimizer) as gradients:
        events = profiled(step, torch.device("cpu"))
    return kinds(model, optimizer, gradients, events, "cpu")


def hand_made(kept: bool = False) -> Any:
    """One parameter of 1 MiB, an activation of 5 MiB, a temporary of 3 MiB beside it, then a gradient."""
    model = torch.nn.Linear(NUMBERS, 1, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    bucket = torch.ones(NUMBERS).view(1, -1) if kept else None

    def step() -> None:
        activation = torch.empty(5 * NUMBERS)
        temporary = torch.empty(3 * NUMBERS)
        del temporary
        model.weight.grad = torch.ones(1, NUMBERS) if bucket is None else bucket
        del activation
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return looked_at(model, optimizer, step)


@pytest.mark.parametrize("kept", [False, True], ids=["fresh gradients", "a bucket that is kept"])
def test_every_kind_has_its_size(kept: bool) -> None:
    found = hand_made(kept)
    assert found.parameters == MIB
    assert found.gradients == MIB
    assert 0 <= found.optimizer - 2 * MIB <= SMALL
    assert 0 <= found.activations - 8 * MIB <= SMALL
    # At once: the parameter, its state, activation and temporary; a bucket that is kept is there as well.
    assert 0 <= found.tensors - (3 + 8 + kept) * MIB <= 2 * SMALL


def test_activations_of_a_real_model_are_what_autograd_keeps() -> None:
    rows, width, layers = 512, 256, 4
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(layers)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(rows, width)

    def step() -> None:
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    found = looked_at(model, optimizer, step)
    one = rows * width * 4
    assert found.optimizer == 0
    assert found.parameters == found.gradients == layers * width * width * 4
    # Each layer's output lives until its backward; there two more exist, the gradients before and behind it.
    assert layers * one <= found.activations <= (layers + 2) * one + SMALL


def test_storages_are_counted_once_and_in_whole() -> None:
    whole = torch.empty(1000)
    assert held_bytes([whole[:10], whole[500:]]) == 4000
    assert held_bytes([torch.empty(0)]) == 0
    assert len(storages([whole, torch.empty(1000)])) == 2


def test_an_address_that_is_used_twice_is_a_gradient_only_while_it_is_one() -> None:
    a, b = 0xA0, 0xB0
    replay = [
        Allocation(1, a, 100),  # an activation
        Allocation(2, a, -100),
        Allocation(3, b, 30),
        Allocation(4, a, 400),  # the gradient, at the activation's place
        Allocation(6, a, -400),
        Allocation(7, a, 70),  # and something else there afterwards
        Allocation(8, 0xC0, -500),  # older than the update
    ]
    assert highest(replay, {a}, used_s=5) == Peak(others=100, everything=430, gradients=400)
    assert highest(replay, set(), used_s=5) == Peak(others=430, everything=430, gradients=0)


def test_the_peak_of_the_process_sees_what_a_call_touches() -> None:
    quiet = peak_process_bytes(lambda: None, torch.device("cpu"))
    busy = peak_process_bytes(lambda: torch.ones(64 * NUMBERS), torch.device("cpu"))
    assert 60 * MIB < busy - quiet < 80 * MIB
