"""What training keeps in memory, by kind: parameters, gradients, optimizer state, and all that lives during an update.

Tensors are counted by their storages, each once, as large as they were allocated: views, buckets and padded shards are
what they really take. Parameters and optimizer state are looked at between updates, gradients right before the
optimizer uses them. The rest is found from the allocations the profiler saw during one update: replayed in order,
those that end as gradients set aside, its highest point is the most that activations, gathered parameters, buffers and
temporaries took at one moment. Nothing here knows a track; what a process occupies, libraries and all, is another
number.

Source: https://docs.pytorch.org/docs/stable/profiler.html (profile_memory)
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from archbench.hardware.meters import peak_host_bytes
from archbench.models.parallel._measures.profile import CALL, MICROSECOND, Event, annotation, interval
from archbench.models.parallel._ways.sharding import local

GRADIENTS = "archbench: gradients"
DEVICE_TYPES = {"cpu": 0, "cuda": 1}  # as the profiler numbers them


class Kinds(NamedTuple):
    """Bytes by kind, each at its own highest moment, and the most of all of them at one moment."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int  # and everything else that lives only during an update
    tensors: int  # all of the above at the moment of their highest sum


class Allocation(NamedTuple):
    """Memory taken, or given back where ``size`` is negative."""

    at_s: float
    address: int
    size: int  # bytes


class Peak(NamedTuple):
    """The most bytes at one moment of an update, of what was allocated during it."""

    others: int  # what does not end as a gradient
    everything: int
    gradients: int  # that were allocated during the update; where buckets are kept, none


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Sizes by address, of what these tensors hold in this process."""
    found = (local(tensor).untyped_storage() for tensor in tensors)
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


def kinds(
    model: nn.Module, optimizer: torch.optim.Optimizer, gradients: dict[int, int], events: Sequence[Event], device: str
) -> Kinds:
    """Of a process, from an update's ``events`` as the profiler and ``gradients`` as ``gradients_seen`` found them."""
    parameters, state = held_bytes(model.parameters()), held_bytes(state_of(optimizer))
    begin, stop = interval(annotation(events, CALL))
    used, _ = interval(annotation(events, GRADIENTS))
    allocations = [
        Allocation(event["ts"] * MICROSECOND, event["args"]["Addr"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == DEVICE_TYPES[device]
    ]
    inside = [allocation for allocation in sorted(allocations) if begin <= allocation.at_s <= stop]
    peak = highest(inside, set(gradients), used)
    size = sum(gradients.values())
    return Kinds(parameters, size, state, peak.others, parameters + state + size - peak.gradients + peak.everything)


def highest(allocations: Sequence[Allocation], gradients: set[int], used_s: float) -> Peak:
    """Replay allocations, in order of time. One at a gradient's address that lives when it is used is a gradient."""
    ends_as_gradient = {index for index in _alive(allocations, used_s) if allocations[index].address in gradients}
    live: dict[int, tuple[int, bool]] = {}
    everything = others = most = most_others = born = 0
    for index, allocation in enumerate(allocations):
        if allocation.size > 0:
            size, is_gradient = allocation.size, index in ends_as_gradient
            live[allocation.address] = (size, is_gradient)
            born += size * is_gradient
        elif allocation.address in live:
            size, is_gradient = live.pop(allocation.address)
            size = -size
        else:  # older than the update
            continue
        everything, others = everything + size, others + size * (not is_gradient)
        most, most_others = max(most, everything), max(most_others, others)
    return Peak(most_others, most, born)


def _alive(allocations: Sequence[Allocation], moment_s: float) -> set[int]:
    """Which allocations, by their place in the list, live at a moment."""
    live: dict[int, int] = {}
    for index, allocation in enumerate(allocations):
        if allocation.at_s > moment_s:
            break
        if allocation.size > 0:
            live[allocation.address] = index
        else:
            live.pop(allocation.address, None)
    return set(live.values())


def peak_process_bytes(call: Callable[[], object], device: torch.device) -> int:
    """What this process occupies at its highest during a call: on a CPU with its libraries, on a GPU all tensors."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return int(torch.cuda.max_memory_allocated(device))
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    except OSError:
        return int(psutil.Process().memory_info().rss) + peak_host_bytes(call)
    call()
    found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else int(psutil.Process().memory_info().rss)
