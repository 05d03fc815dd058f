"""Which parts of the model a stage gets: the contiguous cut whose slowest stage is fastest, by measured cost.

Parts of one kind (embedding, blocks, head) do the same work, so each kind is timed once, forward and backward on a
micro-batch, the loss with the head. All ranks time at once, as they will train, and agree on the least time of any.
Costs count in sixteenths of the largest, so that noise does not move a cut between equals.

The cut: with ``costs`` in a chain, the least maximum of cutting the rest from part i into k stages is the minimum over
the first stage's end j of max(cost of i..j, least maximum from j into k - 1 stages).

Letters: B sequences of a micro-batch, L tokens, D width.

Source: Huang et al. 2018, arXiv:1811.06965 (stages by estimated cost); Narayanan et al. 2019, SOSP (PipeDream: by
profiled cost and dynamic programming)
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate

import torch
from torch import distributed, nn

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._model import loss_of
from archbench.models.parallel._trainer import World

STEPS = 16  # into which the largest cost is counted
REPEATS = 5


def partition(costs: Sequence[int], stages: int) -> list[range]:
    """Contiguous parts for each stage, none empty; of equally good cuts the one that cuts earliest.

    Raises ValueError where there are fewer parts than stages.
    """
    count = len(costs)
    if not 1 <= stages <= count:
        raise ValueError(f"{count} parts cannot be cut into {stages} stages, none of them empty")
    before = [0, *accumulate(costs)]

    @cache
    def slowest(start: int, left: int) -> int:
        """The least maximum of cutting the parts from ``start`` on into ``left`` stages."""
        if left == 1:
            return before[count] - before[start]
        return min(
            max(before[stop] - before[start], slowest(stop, left - 1)) for stop in range(start + 1, count - left + 2)
        )

    bound = slowest(0, stages)
    found: list[range] = []
    start = 0
    for left in range(stages - 1, 0, -1):
        stop = next(
            stop
            for stop in range(start + 1, count - left + 1)
            if before[stop] - before[start] <= bound and slowest(stop, left) <= bound
        )
        found.append(range(start, stop))
        start = stop
    return [*found, range(start, count)]


def measured_costs(world: World, model: nn.Sequential, sequences: int) -> list[int]:
    """Of each part of the model at a micro-batch of so many sequences: the same on every rank."""
    case = world.case
    kinds = [type(part) for part in model]
    first = {kind: kinds.index(kind) for kind in kinds}
    seconds = torch.tensor([_seconds_of(model, index, case, sequences, world.device) for index in first.values()])
    seconds = seconds.to(world.device)
    if world.size > 1:
        distributed.all_reduce(seconds, op=distributed.ReduceOp.MIN)
    by_kind = dict(zip(first, counted(seconds.tolist()), strict=True))
    return [by_kind[kind] for kind in kinds]


def counted(seconds: Sequence[float]) -> list[int]:
    """Costs in whole parts of the largest."""
    return [round(STEPS * value / max(seconds)) for value in seconds]


def _seconds_of(model: nn.Sequential, index: int, case: ParallelCase, sequences: int, device: torch.device) -> float:
    """Forward and backward through one part; the least of a few, after one that does not count."""
    part = model[index]
    tokens_BL = torch.zeros(sequences, case.length, dtype=torch.int64, device=device)
    x_BLD = torch.zeros(sequences, case.length, case.dim, device=device)

    def passes() -> None:
        result = part(tokens_BL if index == 0 else x_BLD.detach().requires_grad_())
        if index == len(model) - 1:
            loss_of(result, tokens_BL).backward()
        else:
            result.backward(x_BLD)

    least = min(_timed(passes, device) for _ in range(1 + REPEATS))
    part.zero_grad(set_to_none=True)
    return least


def _timed(call: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def stage_of(world: World, model: nn.Sequential, stage: int, stages: int, sequences: int) -> nn.Sequential:
    """The parts of one stage, under the names they have in the whole model."""
    own = partition(measured_costs(world, model, sequences), stages)[stage]
    return nn.Sequential(OrderedDict((str(index), model[index]) for index in own))
