"""Traces: what torch's profiler sees of one call of each measured cell, for TensorBoard.

``archbench run --trace DIR`` names the folder in the environment, because a cell is measured in a process of its own.
After the cell's numbers are taken, one call goes into ``DIR/<track>/<case>/<contender>/`` as a file that TensorBoard's
plugin torch-tb-profiler opens: each cell is a run there, and each process of a call a worker. A call that works in
other processes has a method ``trace(folder, *inputs)`` and sees to it itself; any other is profiled where it is. What
does not use torch leaves no trace.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from archbench.cells import Cell
from archbench.harness.gate import Examiner
from archbench.track import Call, Device

VARIABLE = "ARCHBENCH_TRACE"
SUFFIX = ".pt.trace.json"  # what the plugin looks for


@contextmanager
def asked_for(folder: Path | None) -> Iterator[None]:
    """Within: processes that are started leave traces in a folder, if there is one."""
    if folder is None:
        yield
        return
    os.environ[VARIABLE] = str(folder)
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def leave(asked: Examiner, inputs: tuple[Any, ...]) -> None:
    """One call of a cell's work as trace files, where they were asked for and torch is what it uses."""
    traces = os.environ.get(VARIABLE)
    if not traces:
        return
    folder = folder_of(Path(traces), asked.track.name, asked.case.slug, asked.name)
    own: Any = getattr(asked.work, "trace", None)
    if callable(own):
        folder.mkdir(parents=True, exist_ok=True)
        own(folder, *inputs)
    elif "torch" in sys.modules:
        _profile(asked.work, inputs, asked.device, folder / f"{asked.device}.{time.time_ns()}{SUFFIX}")


def folder_of(traces: Path, track: str, case: str, contender: str) -> Path:
    return traces / track / case / contender


def _profile(work: Call, inputs: tuple[Any, ...], device: Device, file: Path) -> None:
    """Two calls, of which the second is kept, if torch did anything in it: the profiler's first step is its own."""
    import torch
    from torch.profiler import ProfilerActivity, profile, schedule

    def keep(seen: Any) -> None:
        if any(not event.name.startswith("ProfilerStep") for event in seen.events()):
            file.parent.mkdir(parents=True, exist_ok=True)
            seen.export_chrome_trace(str(file))

    with profile(
        activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda"),
        schedule=schedule(wait=0, warmup=1, active=1, repeat=1),
        on_trace_ready=keep,
        record_shapes=True,
        profile_memory=True,
    ) as profiler:
        for _ in range(2):
            work(*inputs)
            if device == "cuda":
                torch.cuda.synchronize()
            profiler.step()


def missing(traces: Path, cells: Iterable[Cell]) -> dict[str, list[str]]:
    """The contenders of each track that were measured and left no trace."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        folder = folder_of(traces, cell.track, cell.case, cell.contender)
        if cell.status == "ok" and not any(folder.glob(f"*{SUFFIX}")):
            names = found.setdefault(cell.track, [])
            names += [cell.contender] * (cell.contender not in names)
    return found
