"""What torch's profiler saw of one call: intervals that can be added up and taken from one another.

*Exposed communication* is the time of a call in which a communication is under way and this process computes nothing.
On a CPU gloo's threads do the talking: a communication lasts from its begin there to its end, computing is any
operation of torch on the thread that makes the call, except waiting for a communication; the interpreter's few
microseconds between two operations count as computing. On a GPU both are kernels, on streams of their own.

Source: https://docs.pytorch.org/docs/stable/profiler.html
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from archbench.models._profile import CALL, Event, Interval, annotation, interval

INTERPRETER_S = 100e-6  # a shorter pause between two operations is Python's
TALKING = "gloo:"  # what torch calls gloo's work, from its begin to its end
COMPUTING = "aten::"
WAITING = ("c10d::", "_c10d_functional::")  # operations that may wait for a communication


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
