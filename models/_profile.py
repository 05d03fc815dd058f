"""What torch's profiler saw of one call: its events, and where a named range lies among them.

``profiled`` runs a call under the profiler and reads its trace; a ``record_function`` inside the call is found again by
``annotation``. What is made of the events (memory by kind, communication that is waited for) is said where it is made.

Source: https://docs.pytorch.org/docs/stable/profiler.html
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

Event = dict[str, Any]
Interval = tuple[float, float]

CALL = "archbench: call"
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
    return next(_annotations(events, name))


def _annotations(events: Iterable[Event], name: str) -> Iterator[Event]:
    return (event for event in events if event.get("cat") == "user_annotation" and event["name"] == name)


def intervals(events: Iterable[Event], name: str) -> list[Interval]:
    """Of all events of a ``record_function``, in seconds."""
    return [interval(event) for event in _annotations(events, name)]


def interval(event: Event) -> Interval:
    """Of an event that lasts, in seconds."""
    start = float(event["ts"]) * MICROSECOND
    return start, start + float(event["dur"]) * MICROSECOND
