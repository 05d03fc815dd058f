"""The memory of one training step by part: measured, and beside it what ``_memory_formula`` predicts from the case.

A trained model makes one more step under torch's profiler, with a learning rate of zero, so that its weights and its
routing stay as they are. Parameters, buffers and optimizer state are counted by their storages, gradients right before
the optimizer uses them. What the forward pass allocated and what still lives when the backward pass begins are the
*activations*, weights' copies in a smaller type included; what of it was allocated by routers and by the dispatch of
tokens is *routing*. The highest moment of the step follows from the same list of allocations.

On a GPU the profiler sees the allocations of CUDA's caching allocator, which rounds each up to 512 bytes. What was
measured so far was measured on CPUs.

Source: docs/derivations/moe.md; https://docs.pytorch.org/docs/stable/profiler.html (profile_memory)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from archbench.models._memory import Allocation, alive, allocations, gradients_seen, held_bytes, state_of
from archbench.models._profile import Event, annotation, interval, intervals, profiled
from archbench.models.switch_lm import SwitchCase
from archbench.models.switch_lm._dense_run import recipe_of
from archbench.models.switch_lm._memory_formula import FLOAT, Formula
from archbench.models.switch_lm._model import DISPATCH, ROUTER, Dense, LanguageModel, Output, Switch
from archbench.models.switch_lm._text import loss, text_of
from archbench.models.train import Step
from archbench.track import Device

BACKWARD = "archbench: backward begins"


class Parts(NamedTuple):
    """Bytes, ``step_peak`` of all at one moment; and the assignments each Switch layer kept."""

    parameters: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    routing: int
    step_peak: int
    kept: tuple[int, ...]


def profile(case: SwitchCase, model: nn.Module, device: Device) -> dict[str, float]:
    """``parameters_bytes`` and so on of one step, and ``parameters_formula_bytes`` and so on. Weights stay the same.

    A model of another build than those here has no formula.
    """
    found = measured(case, model, device)
    parts = {part: getattr(found, part) for part in Parts._fields if part != "kept"}
    metrics = {f"{part}_bytes": float(size) for part, size in parts.items() if size}  # a dense model has no routing
    if formula := formula_of(case, model):
        metrics |= {f"{part}_formula_bytes": float(size) for part, size in formula.parts(found.kept).items() if size}
    return metrics


def formula_of(case: SwitchCase, model: nn.Module) -> Formula | None:
    """For the sizes a model was made with; its tensors are not counted. None where it is built in another way."""
    if not isinstance(model, LanguageModel) or len(model.blocks) != case.layers:
        return None
    characters = text_of(case).characters
    layers = [block.feed_forward for at, block in enumerate(model.blocks) if case.is_switched(at)]
    layer = layers[0]
    if all(type(each) is Dense for each in layers):
        return Formula(case, characters, layer.rise.weight.shape[0])
    if all(type(each) is Switch for each in layers):
        router = layer.router_dtype.itemsize if layer.router_dtype else FLOAT
        return Formula(case, characters, layer.rise_EDF.shape[2], layer.experts, router)
    return None


def measured(case: SwitchCase, model: nn.Module, device: Device) -> Parts:
    kept: list[int] = []

    def look(_module: nn.Module, _batch: Any, output: Output) -> None:
        kept[:] = [len(routed.routing.token_A) for routed in output.routed]

    step = Step(model, _marked_loss, recipe_of(case), device)
    step.set_lr(0.0)
    batch = step.placed(text_of(case).batches(0)(0))
    step(*batch)  # afterwards there is optimizer state
    step.optimizer.zero_grad(set_to_none=True)  # the profiler does not see what is older than itself given back
    handle = model.register_forward_hook(look)
    try:
        with gradients_seen(step.optimizer) as gradients:
            events = profiled(partial(step, *batch), step.device)
    finally:
        handle.remove()
        step.optimizer.zero_grad(set_to_none=True)
    return _parts(model, step.optimizer, sum(gradients.values()), events, device, kept)


def _marked_loss(model: nn.Module, *batch: Tensor) -> Tensor:
    """The loss, with a mark in the trace where the backward pass begins."""

    def mark(_gradient: Tensor) -> None:
        with record_function(BACKWARD):
            pass

    value = loss(model, *batch)
    value.register_hook(mark)
    return value


def _parts(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    gradients: int,
    events: Sequence[Event],
    device: Device,
    kept: Sequence[int],
) -> Parts:
    taken = allocations(events, device)
    begins, _ = interval(annotation(events, BACKWARD))
    ranges = intervals(events, ROUTER) + intervals(events, DISPATCH)
    living = [taken[index] for index in alive(taken, begins)]
    routing = sum(each.size for each in living if any(start <= each.at_s <= stop for start, stop in ranges))
    parameters, buffers, state = map(held_bytes, (model.parameters(), model.buffers(), state_of(optimizer)))
    return Parts(
        parameters=parameters,
        gradients=gradients,
        optimizer=state,
        buffers=buffers,
        activations=sum(each.size for each in living) - routing,
        routing=routing,
        step_peak=parameters + buffers + state + _highest(taken, begins, gradients),
        kept=tuple(kept),
    )


def _highest(taken: Sequence[Allocation], begins_s: float, gradients: int) -> int:
    """The most bytes at one moment of what comes and goes; until the backward pass the last step's gradients are there.

    What is given back and was never taken is older than the list.
    """
    known: set[int] = set()
    changes: list[tuple[float, int]] = []
    for allocation in taken:
        if allocation.size > 0:
            known.add(allocation.address)
        elif allocation.address not in known:
            continue
        changes.append((allocation.at_s, allocation.size))
    sums = accumulate(size for _, size in changes)
    return max(size + gradients * (at_s < begins_s) for (at_s, _), size in zip(changes, sums, strict=True))
