"""What training holds in memory: tensors by their storages, gradients when they are used, allocations one by one.

Tensors are counted by their storages, each once, as large as they were allocated: views, buckets and padded shards are
what they really take. Parameters and optimizer state are looked at between updates, gradients right before the
optimizer uses them; all that lives only during an update is in the allocations the profiler saw.

Source: https://docs.pytorch.org/docs/stable/profiler.html (profile_memory)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function

from archbench.models._profile import CALL, MICROSECOND, Event, annotation, interval

GRADIENTS = "archbench: gradients"
DEVICE_TYPES = {"cpu": 0, "cuda": 1}  # as the profiler numbers them


class Allocation(NamedTuple):
    """Memory taken, or given back where ``size`` is negative."""

    at_s: float
    address: int
    size: int  # bytes


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Sizes by address, of what these tensors hold in this process."""
    parts = (tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors)  # of a DTensor
    found = (part.untyped_storage() for part in parts)
    return {storage.data_ptr(): storage.nbytes() for storage in found if storage.nbytes()}


def held_bytes(tensors: Iterable[Any]) -> int:
    return sum(storages(tensors).values())


def state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors an optimizer keeps."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


@contextmanager
def gradients_seen(optimizer: torch.optim.Optimizer) -> Iterator[dict[int, int]]:
    """Within: fills a dictionary with the gradients' storages when the optimizer is about to use them."""
    found: dict[int, int] = {}

    def look(*_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        with record_function(GRADIENTS):
            found.update(storages(parameter.grad for parameter in parameters if parameter.grad is not None))

    handle = optimizer.register_step_pre_hook(look)
    try:
        yield found
    finally:
        handle.remove()


def allocations(events: Sequence[Event], device: str) -> list[Allocation]:
    """What was taken and given back on a device during the call, in order of time."""
    begin, stop = interval(annotation(events, CALL))
    found = [
        Allocation(event["ts"] * MICROSECOND, event["args"]["Addr"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == DEVICE_TYPES[device]
    ]
    return [allocation for allocation in sorted(found) if begin <= allocation.at_s <= stop]


def alive(taken: Sequence[Allocation], moment_s: float) -> set[int]:
    """Which of some allocations, by their place in the list, live at a moment."""
    live: dict[int, int] = {}
    for index, allocation in enumerate(taken):
        if allocation.at_s > moment_s:
            break
        if allocation.size > 0:
            live[allocation.address] = index
        else:
            live.pop(allocation.address, None)
    return set(live.values())
