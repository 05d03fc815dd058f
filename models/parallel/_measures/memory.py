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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import nn

from archbench.hardware.meters import peak_host_bytes
from archbench.models._memory import GRADIENTS, Allocation, alive, allocations, held_bytes, state_of
from archbench.models._profile import Event, annotation, interval


class Kinds(NamedTuple):
    """Bytes by kind, each at its own highest moment, and the most of all of them at one moment."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int  # and everything else that lives only during an update
    tensors: int  # all of the above at the moment of their highest sum


class Peak(NamedTuple):
    """The most bytes at one moment of an update, of what was allocated during it."""

    others: int  # what does not end as a gradient
    everything: int
    gradients: int  # that were allocated during the update; where buckets are kept, none


def kinds(
    model: nn.Module, optimizer: torch.optim.Optimizer, gradients: dict[int, int], events: Sequence[Event], device: str
) -> Kinds:
    """Of a process, from an update's ``events`` as the profiler and ``gradients`` as ``gradients_seen`` found them."""
    parameters, state = held_bytes(model.parameters()), held_bytes(state_of(optimizer))
    used, _ = interval(annotation(events, GRADIENTS))
    peak = highest(allocations(events, device), set(gradients), used)
    size = sum(gradients.values())
    return Kinds(parameters, size, state, peak.others, parameters + state + size - peak.gradients + peak.everything)


def highest(taken: Sequence[Allocation], gradients: set[int], used_s: float) -> Peak:
    """Replay allocations, in order of time. One at a gradient's address that lives when it is used is a gradient."""
    ends_as_gradient = {index for index in alive(taken, used_s) if taken[index].address in gradients}
    live: dict[int, tuple[int, bool]] = {}
    everything = others = most = most_others = born = 0
    for index, allocation in enumerate(taken):
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
