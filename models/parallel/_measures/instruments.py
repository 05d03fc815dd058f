"""What a rank finds out about itself in a few updates after the timed calls.

Some updates run as they are: their time, the bytes they send, the pieces a pipeline keeps of them. One shows the
highest memory of the process. A few run under the profiler, which slows them a little and all ranks alike: memory by
kind, and the time in which communication is waited for. What is left of an update is a rank's *own time*: a rank that
is starved of its core, throttled or slower shows there, and not in the time of the update, which is the same for all.

Letters: S steps, B sequences of the global batch, L tokens.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule

from archbench.models._memory import gradients_seen
from archbench.models._profile import profiled
from archbench.models.parallel._launch.rank import Rank
from archbench.models.parallel._measures.memory import Kinds, kinds, peak_process_bytes
from archbench.models.parallel._measures.profile import call_and_exposed
from archbench.models.parallel._measures.wire import collective_bytes, sent_bytes
from archbench.models.parallel._trainer import Mark

PLAIN = 5  # updates that run as they are
PROFILED = 3


@dataclass(frozen=True)
class Report:
    """A rank's own findings."""

    update_s: list[float]  # of each plain update
    marks: list[list[Mark]]  # of each plain update
    sent_bytes: float | None  # in an update
    peak_bytes: int
    memory: Kinds
    profiled_s: list[float]  # of each profiled update
    exposed_s: list[float]  # of each profiled update: waiting for communication
    wire_formula: float | None  # bytes an update should send
    weights_formula: float | None  # parameters this rank should hold
    bubble_formula: float | None


def look(rank: Rank, tokens: Any) -> list[Report]:
    """Every rank's report, of updates on the first of ``tokens`` (S, B, L + 1)."""
    batch = torch.from_numpy(tokens[0]).to(rank.world.device)
    rank.trainer.reset()
    rank.update(batch)  # afterwards there is optimizer state, and every buffer
    update_s, marks, sent = _plain(rank, batch)
    rank.together()
    peak = peak_process_bytes(lambda: rank.update(batch), rank.world.device)
    profiled_s, exposed_s = [], []
    for _ in range(PROFILED):
        with gradients_seen(rank.trainer.optimizer) as gradients:
            events = profiled(partial(rank.update, batch), rank.world.device, rank.together)
        call, exposed = call_and_exposed(events)
        profiled_s.append(call)
        exposed_s.append(exposed)
    trainer = rank.trainer
    memory = kinds(trainer.model, trainer.optimizer, gradients, events, rank.world.device.type)
    if rank.world.device.type == "cuda":
        sent = collective_bytes(events)
    formulas = (trainer.wire_formula(), trainer.weights_formula(), trainer.bubble_formula())
    return rank.gathered(Report(update_s, marks, sent, peak, memory, profiled_s, exposed_s, *formulas))


def _plain(rank: Rank, batch: Tensor) -> tuple[list[float], list[list[Mark]], float | None]:
    """Seconds and marks of some updates, and what one of them sends."""
    seconds, marks = [], []
    rank.together()
    before = sent_bytes()
    for _ in range(PLAIN):
        began = time.monotonic()
        rank.update(batch)
        seconds.append(time.monotonic() - began)
        marks.append(rank.trainer.marks())
    after = sent_bytes()
    return seconds, marks, None if before is None or after is None else (after - before) / PLAIN


def threads(rank: Rank, number: int) -> None:
    """Use so many threads from now on."""
    torch.set_num_threads(number)


def trace(rank: Rank, tokens: Any, folder: str) -> None:
    """Write what the profiler sees of one call, a step for each update, as TensorBoard's plugin reads it."""
    batches = torch.from_numpy(tokens).to(rank.world.device)
    rank.trainer.reset()
    rank.update(batches[0])
    cuda = rank.world.device.type == "cuda"
    Path(folder).mkdir(parents=True, exist_ok=True)  # on another host than the driver's nobody has made it
    file = Path(folder) / f"rank{rank.world.rank}.{time.time_ns()}.pt.trace.json"
    with profile(
        activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda,
        schedule=schedule(wait=0, warmup=1, active=len(batches), repeat=1),
        on_trace_ready=lambda seen: seen.export_chrome_trace(str(file)),
        record_shapes=True,
        profile_memory=True,
    ) as profiler:
        for batch in (batches[0], *batches):
            rank.update(batch)
            profiler.step()
