"""When a rank did what in its last update: cheap enough to be always on.

A piece is timed by two looks at the monotonic clock. A GPU works later than it is told to, so there a piece is timed
by two events of its stream, and the clock is read once, when somebody asks. Whatever lies between two pieces is
waiting: for another rank, for a transfer, for the interpreter.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from archbench.models.parallel._trainer import Mark

WAIT = "wait"


class Timeline:
    """The pieces of one update, in the order they were done."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._began: Any = None
        self._pieces: list[tuple[str, Any, Any, int | None]] = []

    def begin(self) -> None:
        """Forget the update before."""
        self._pieces.clear()
        self._began = self._now()

    @contextmanager
    def piece(self, what: str, part: int | None = None) -> Iterator[None]:
        start = self._now()
        yield
        self._pieces.append((what, start, self._now(), part))

    def marks(self) -> list[Mark]:
        """The pieces and the waiting between them, in seconds of the monotonic clock."""
        if self._began is None:
            return []
        seconds = self._seconds()
        pieces = [Mark(what, seconds(start), seconds(stop), part) for what, start, stop, part in self._pieces]
        return with_waits(seconds(self._began), pieces)

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self) -> Any:
        """From what ``_now`` gave to seconds of the clock."""
        if not self._on_gpu:
            return lambda at: at
        last = self._now()
        last.synchronize()
        now_s = time.monotonic()
        return lambda event: now_s - event.elapsed_time(last) / 1e3


def with_waits(began_s: float, pieces: Sequence[Mark]) -> list[Mark]:
    """Pieces in order of time, and a wait wherever there is none."""
    marks: list[Mark] = []
    at = began_s
    for piece in pieces:
        if piece.start_s > at:
            marks.append(Mark(WAIT, at, piece.start_s))
        marks.append(piece)
        at = piece.stop_s
    return marks
