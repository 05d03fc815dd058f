"""The driver's side of a study: what it asks ranks beside the timed calls, and the numbers it makes of the answers.

Of what ranks report the largest counts, because the rank that runs out of memory or comes last decides. Two answers
need ranks of their own: the first update of ranks that have just been started, and one worker alone, which is what an
update of all ranks is compared with.

Letters: S steps, B sequences of the global batch, L tokens, P parameters, W ranks.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from archbench.cells import Span
from archbench.checks import Wrong
from archbench.models import parallel
from archbench.models.parallel import BACKENDS, ParallelCase, make_inputs
from archbench.models.parallel._gate import EXACT, Bounds, judge_parameters
from archbench.models.parallel._launch.ranks import Ranks
from archbench.models.parallel._measures.checkpoint import folder_on_disk
from archbench.models.parallel._measures.instruments import Report
from archbench.models.parallel._measures.wire import FLOAT_BYTES
from archbench.models.parallel._ways.schedule import bubble
from archbench.nodes import Nodes
from archbench.training import Outcome

WITHIN_S = 300.0
PAIRS = 3  # of an update by all ranks and one by a worker alone
SEED = 1
STATE = 2  # AdamW's numbers for each parameter

UNEQUAL = 1.5  # the slowest rank's own time in the others' from which the reader wants to know which it is

Metrics = dict[str, float]
Start = Callable[[str, int], Ranks]  # of a module, so many


def study(module: str, case: ParallelCase, ranks: Ranks, start: Start) -> Outcome:
    """Everything beside the clock. Raises Wrong where parameters are not what they must be, or are lost on a disk."""
    tokens = make_inputs(replace(case, steps=1), SEED, BACKENDS[case.backend])[0]
    reports: list[Report] = ranks.ask("look", tokens, within_s=WITHIN_S)
    metrics = memory(reports) | talk(reports) | idle(reports)
    metrics["parameter_error"] = parameter_error(module, case, ranks, tokens)
    metrics |= checkpoint(ranks)
    metrics |= cost(case, ranks, start, tokens)
    metrics["first_step_s"] = first_step_s(module, ranks, start, tokens)
    first = {"cost_of_parallelism": metrics.pop("cost_of_parallelism")}  # what the track is about, for whoever reads
    return Outcome(first | metrics, own_times(reports), spans(reports))


def memory(reports: Sequence[Report]) -> Metrics:
    """Bytes of the largest rank, by kind and of its process."""
    found = {
        "peak_bytes": float(max(report.peak_bytes for report in reports)),
        "tensors_bytes": float(max(report.memory.tensors for report in reports)),
    }
    for kind in ("parameters", "gradients", "optimizer", "activations"):
        found[f"{kind}_bytes"] = float(max(getattr(report.memory, kind) for report in reports))
    weights = [report.weights_formula for report in reports if report.weights_formula is not None]
    if weights:
        for kind, numbers in (("parameters", 1), ("gradients", 1), ("optimizer", STATE)):
            found[f"{kind}_formula_bytes"] = FLOAT_BYTES * numbers * max(weights)
    return found


def talk(reports: Sequence[Report]) -> Metrics:
    """What ranks send, how long they wait for one another, and how much slower the slowest is than the others."""
    if len(reports) == 1:
        return {}
    found: Metrics = {}
    sent = [report.sent_bytes for report in reports if report.sent_bytes is not None]
    if sent:
        found["wire_bytes"] = max(sent)
    formula = [report.wire_formula for report in reports if report.wire_formula is not None]
    if formula:
        found["wire_formula_bytes"] = max(formula)
    shares = [sum(report.exposed_s) / sum(report.profiled_s) for report in reports]
    found["exposed_communication_share"] = max(shares)
    found["mean_exposed_communication_share"] = fmean(shares)
    found["slowest_rank"] = slowest([median(_own(report)) for report in reports])
    return found


def _own(report: Report) -> list[float]:
    """Seconds of each profiled update in which the rank did not wait for another."""
    return [whole - waiting for whole, waiting in zip(report.profiled_s, report.exposed_s, strict=True)]


def own_times(reports: Sequence[Report]) -> dict[str, list[tuple[float, float]]]:
    """The ranks' own times as a curve, where one of them is much slower: which it is."""
    own = [median(_own(report)) for report in reports]
    unequal = len(own) > 1 and slowest(own) > UNEQUAL
    return {"own_time_s_over_rank": [(float(rank), time_s) for rank, time_s in enumerate(own)]} if unequal else {}


def slowest(own_s: Sequence[float]) -> float:
    """The largest of the ranks' own times, in medians of the others'."""
    *others, largest = sorted(own_s)
    return largest / median(others)


def idle(reports: Sequence[Report]) -> Metrics:
    """The bubble of a pipeline, the median of the plain updates, and what the formula says of it."""
    formula = reports[0].bubble_formula
    if formula is None:
        return {}
    updates = range(len(reports[0].marks))
    return {
        "bubble_share": median(bubble([report.marks[update] for report in reports]) for update in updates),
        "bubble_formula": formula,
    }


def spans(reports: Sequence[Report]) -> list[Span]:
    """The last plain update as a timeline, a lane for each rank. Ranks of several hosts have no clock in common."""
    if Nodes.told().count > 1 or not any(report.marks[-1] for report in reports):
        return []
    began = min(mark.start_s for report in reports for mark in report.marks[-1])
    return [
        Span(f"rank {rank}", mark.what, mark.start_s - began, mark.stop_s - began, mark.part)
        for rank, report in enumerate(reports)
        for mark in report.marks[-1]
    ]


def parameter_error(module: str, case: ParallelCase, ranks: Ranks, tokens: Any) -> float:
    """How far the whole model is from the reference after an update, number by number. Raises Wrong."""
    ranks.ask("train", tokens)
    found = ranks.ask("parameters", within_s=WITHIN_S)
    return judge_parameters(replace(case, steps=1), tokens, found, bounds_of(module))


def bounds_of(module: str) -> Bounds:
    """How far a contender may be off: the track's bounds, or those of its own gate."""
    gate = getattr(getattr(sys.modules.get(module), "CONTENDER", None), "gate", None)
    return gate if isinstance(gate, Bounds) else EXACT


def checkpoint(ranks: Ranks) -> Metrics:
    """Seconds until a checkpoint is on a disk, and its size. Raises Wrong where it does not restore."""
    above = folder_on_disk()
    if above is None or Nodes.told().count > 1:  # hosts have no folder in common
        return {}
    with tempfile.TemporaryDirectory(prefix="archbench-checkpoint-", dir=above) as folder:
        took, same = ranks.ask("checkpoint", folder, within_s=WITHIN_S)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    if not same:
        raise Wrong("a checkpoint that was written and read again holds other parameters or another optimizer state")
    return {"checkpoint_s": took, "checkpoint_bytes": float(size)}


def first_step_s(module: str, ranks: Ranks, start: Start, tokens: Any) -> float:
    """From the start of the launcher to the end of the first update, in ranks of its own."""
    began = time.monotonic()
    with _closing(start(module, ranks.size)) as fresh:
        fresh.ask("train", tokens)
        return time.monotonic() - began


def cost(case: ParallelCase, ranks: Ranks, start: Start, tokens: Any) -> Metrics:
    """``cost_of_parallelism``: worker seconds of an update, in those of one worker that makes it alone.

    A worker is a rank's share: a GPU, or the cores of its host over the ranks there. One that is alone has the other
    cores idle beside it, which is what a user without parallelism would have.
    """
    on_cpu = BACKENDS[case.backend] == "cpu"
    if not on_cpu and ranks.size == 1:
        return {}  # it is the one worker
    with _closing(start(f"{parallel.__name__}.single", 1)) as one:
        if on_cpu:
            here = max(1, case.world // Nodes.told().count)
            one.ask("threads", max(1, (os.cpu_count() or 1) // here))
        times = []
        for pair in range(PAIRS + 1):
            both = [_seconds(ranks, tokens), _seconds(one, tokens)]
            if pair:  # the first one warms both
                times.append(both)
    return {"cost_of_parallelism": case.world * median(together / one_s for together, one_s in times)}


def _seconds(ranks: Ranks, tokens: Any) -> float:
    began = time.monotonic()
    ranks.ask("train", tokens)
    return time.monotonic() - began


@contextlib.contextmanager
def _closing(ranks: Ranks) -> Iterator[Ranks]:
    try:
        yield ranks
    finally:
        ranks.close()
