"""What torch's profiler saw of one call: intervals that can be added up and taken from one another.

*Exposed communication* is the time of a call in which a communication is under way and this process computes nothing.
On a CPU gloo's threads do the talking: a communication lasts from its begin there to its end, computing is any
operation of torch on the thread that makes the call, except waiting for a communication; the interpreter's few
microseconds between two operations count as computing. On a GPU both are kernels, on streams of their own.

Source: https://docs.pytorch.org/docs/stable/profiler.html
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

Event = dict[str, Any]
Interval = tuple[float, float]

CALL = "archbench: call"
INTERPRETER_S = 100e-6  # a shorter pause between two operations is Python's
TALKING = "gloo:"  # what torch calls gloo's work, from its begin to its end
COMPUTING = "aten::"
WAITING = ("c10d::", "_c10d_functional::")  # operations that may wait for a communication
MICROSECOND = 1e-6


def profiled(
    call: Callable[[], object], device: torch.device, ready: Callable[[], object] = lambda: None
) -> list[Event]:
    """One call's events. ``ready`` is called first, when the profiler already looks."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities, profile_memory=True) as profiler:
        ready()
        with record_function(CALL):
            call()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events: list[Event] = json.loads(file.read_bytes())["traceEvents"]
    return events


def annotation(events: Iterable[Event], name: str) -> Event:
    """The event of a ``record_function``."""
    return next(event for event in events if event.get("cat") == "user_annotation" and event["name"] == name)


def call_and_exposed(events: Sequence[Event]) -> tuple[float, float]:
    """Seconds of the call, and those of them in which communication was waited for."""
    call = annotation(events, CALL)
    window = interval(call)
    kernels = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if kernels:
        talks = [interval(event) for event in kernels if "nccl" in event["name"].lower()]
        works = union(interval(event) for event in kernels if "nccl" not in event["name"].lower())
    else:
        own = [event for event in events if event.get("cat") == "cpu_op" and event["tid"] == call["tid"]]
        talks = [interval(event) for event in events if event.get("ph") == "X" and event["name"].startswith(TALKING)]
        waits = union(interval(event) for event in own if event["name"].startswith(WAITING))
        works = without(union(interval(event) for event in own if event["name"].startswith(COMPUTING)), waits)
        works = joined(works, INTERPRETER_S)
    return length([window]), length(without(within(union(talks), window), works))


def interval(event: Event) -> Interval:
    """Of an event that lasts, in seconds."""
    start = float(event["ts"]) * MICROSECOND
    return start, start + float(event["dur"]) * MICROSECOND


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """What is in any of them: in order, apart from one another."""
    return joined(sorted(intervals), 0.0)


def joined(intervals: Iterable[Interval], gap: float) -> list[Interval]:
    """Intervals in order, with pauses of at most ``gap`` closed."""
    found: list[Interval] = []
    for start, stop in intervals:
        if found and start - found[-1][1] <= gap:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        else:
            found.append((start, stop))
    return found


def within(intervals: Iterable[Interval], window: Interval) -> list[Interval]:
    """The parts of them inside a window."""
    cut = [(max(start, window[0]), min(stop, window[1])) for start, stop in intervals]
    return [(start, stop) for start, stop in cut if start < stop]


def without(intervals: Sequence[Interval], holes: Sequence[Interval]) -> list[Interval]:
    """The parts of intervals outside of holes; both in order, apart from one another."""
    found: list[Interval] = []
    next_hole = 0
    for start, stop in intervals:
        while next_hole < len(holes) and holes[next_hole][1] <= start:
            next_hole += 1
        at = start
        for hole_start, hole_stop in holes[next_hole:]:
            if hole_start >= stop:
                break
            if hole_start > at:
                found.append((at, hole_start))
            at = max(at, hole_stop)
        if at < stop:
            found.append((at, stop))
    return found


def length(intervals: Iterable[Interval]) -> float:
    return sum(stop - start for start, stop in intervals)
