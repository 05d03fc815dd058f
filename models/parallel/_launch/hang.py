"""Which rank keeps the others waiting, where none answers.

Ranks note each call and each update they begin. One that is behind in these notes is named; so is one that is stopped.
Where all are in the same update, their stacks tell who waits for others in it and who does something else: a rank dumps
its stack when it gets SIGUSR1, whatever it does.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import psutil

STACK_S = 2.0  # for a stack to be dumped
NOT_BEGUN = "not begun"
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>.+)$', re.MULTILINE)
_LIBRARY = re.compile(r"/torch/|/multiprocessing/")
_WAITS = re.compile(
    r"/torch/distributed/|/torch/nn/parallel/|/torch/autograd/graph\.py|/multiprocessing/connection\.py"
)


def late(folder: Path, pids: Mapping[int, int], notes: Sequence[tuple[int, int]], here: range, nodes: int) -> str:
    """Who did not go on. ``notes``: calls and updates begun, by rank; ``here``: the ranks of this host."""
    where = {rank: _place(folder, pids.get(rank), rank) for rank in here}
    least = min(notes[rank] for rank in here)
    behind = [rank for rank in here if notes[rank] == least]
    stopped = [rank for rank in here if where[rank] == "stopped"]
    busy = [rank for rank in here if not where[rank].startswith("waits")]
    ours = next((group for group in (stopped, behind, busy) if 0 < len(group) < len(here)), [])
    elsewhere = [rank for rank in range(len(notes)) if rank not in here]
    shown = "; ".join(f"rank {rank}: {where[rank]}, {_progress(notes[rank])}" for rank in ours or here)
    if elsewhere and not ours and all(where[rank] == NOT_BEGUN for rank in busy):
        size = len(here)
        far = " and ".join(f"rank {rank} on node {rank // size}" for rank in elsewhere)
        return f"no word from {far}; {shown}"
    who = " and ".join(f"rank {rank}{' on node 0' if nodes > 1 else ''}" for rank in ours) or "no rank"
    return f"{who} {'did not go on' if ours else 'went on'} ({shown})"


def _progress(note: tuple[int, int]) -> str:
    calls, updates = note
    return (
        f"in update {updates} of call {calls}" if updates else f"in call {calls}" if calls else "before the first call"
    )


def _place(folder: Path, pid: int | None, rank: int) -> str:
    """Where a rank is: "stopped", "waits in FUNCTION (FILE:LINE)", "in FUNCTION (FILE:LINE)"."""
    if pid is None:
        return NOT_BEGUN
    with contextlib.suppress(psutil.Error, OSError):
        if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            return "stopped"
        os.kill(pid, signal.SIGUSR1)
    frames = _stack(folder / f"stack-{rank}")
    if not frames:
        return "says nothing"
    within = list(takewhile(lambda frame: _LIBRARY.search(frame["file"]), frames))
    waits = any(_WAITS.search(frame["file"]) for frame in within)
    own = frames[len(within)] if len(within) < len(frames) else frames[0]
    return f"{'waits' if waits else 'is'} in {own['function']} ({Path(own['file']).name}:{own['line']})"


def _stack(path: Path) -> list[re.Match[str]]:
    """The frames of a rank's main thread, innermost first; empty where it does not tell in time."""
    until = time.monotonic() + STACK_S
    while time.monotonic() < until:
        time.sleep(0.05)
        text = path.read_text(errors="replace") if path.exists() else ""
        if text.endswith("\n"):
            # Threads come newest first; the main one is the last.
            return list(_FRAME.finditer(re.split(r"^(?:Current t|T)hread .*$", text, flags=re.MULTILINE)[-1]))
    return []
