"""Which rank was the first to end, and how: the others end because of it.

A rank that raises writes down when and what before it lets go of any connection, so what follows from that is written
later. A rank that is killed writes nothing: its exit signal says it. What the others then raise is about a connection
they lost, and the supervisor ends those that are left with SIGTERM. So the cause is the earliest end that neither is
about a lost connection nor follows from that signal. torchrun's own choice, the earliest whole second of the error
files, names the wrong rank in every other case.

Source: torch.distributed.elastic.multiprocessing.errors (ChildFailedError.get_first_failure)
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from archbench.atomic import write_atomically
from archbench.endings import killer, out_of_memory_kills
from archbench.reasons import short, told
from archbench.track import Failed, Unavailable

LAST_LINES = 5
_LOST = re.compile(
    r"gloo/transport|connection (was |refused|reset|closed)|broken pipe|closed by peer|remote process exited"
    r"|recvvalue failed|sendbytes failed|failed to recv|socket timeout|distnetworkerror|diststoreerror",
    re.IGNORECASE,
)
_FULL = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc", "memoryerror")


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How a rank ended. ``rank`` is None where it was the supervisor itself."""

    rank: int | None
    node: int = 0
    code: int | None = None  # of the process; negative: the signal that killed it
    at_s: float = 0.0  # of the node's monotonic clock
    said: str = ""  # what it raised, in words
    unavailable: bool = False  # it raised Unavailable: nothing is broken
    lines: tuple[str, ...] = ()  # the last ones it wrote

    @property
    def lost(self) -> bool:
        """Whether it follows from the end of another one."""
        text = " ".join(self.lines) if self.code == -signal.SIGABRT and not self.said else self.said
        return _LOST.search(text) is not None


def note(folder: Path, rank: int, error: BaseException) -> None:
    """A rank writes down why it ends, before anybody else can notice."""
    origin = error
    while origin.__cause__ is not None:  # libraries wrap what they did not expect: want of memory, for one
        origin = origin.__cause__
    message = told(error) if origin is error else f"{told(error)}, from {told(origin)}"
    message = str(error) if isinstance(error, Unavailable) else message
    end = End(rank=rank, at_s=time.monotonic(), said=short(message), unavailable=isinstance(error, Unavailable))
    write_atomically(folder / f"end-{rank}.json", msgspec.json.encode(end))


def gathered(
    folder: Path, node: int, begins: int, exits: Mapping[int, tuple[int, int]], ended_s: Mapping[int, float]
) -> list[End]:
    """The ends of this node's ranks, which ``begins`` is the first of.

    ``exits`` are the local ranks and exit codes of the processes that failed, ``ended_s`` the moments at which any
    ended, by process id. One that left with 0 is known by what it wrote when it began.
    """
    places = {pid: local for pid, (local, _) in exits.items()}
    for path in folder.glob("pid-*"):
        pid, place = int(path.name.removeprefix("pid-")), path.read_text().split()
        if pid in ended_s and len(place) == len(("rank", "local")):
            places.setdefault(pid, int(place[1]))
    found = []
    for pid, local in places.items():
        rank = begins + local
        ended = End(rank=rank, at_s=ended_s.get(pid, time.monotonic()))
        if (folder / f"end-{rank}.json").exists():
            ended = msgspec.json.decode((folder / f"end-{rank}.json").read_bytes(), type=End)
        _, code = exits.get(pid, (local, 0))
        lines = last_lines(folder / "logs", local)
        found.append(msgspec.structs.replace(ended, node=node, code=code, lines=lines))
    return found


def first(ends: Iterable[End]) -> End | None:
    """The end that the others follow from; None where nothing ended."""
    known = sorted(ends, key=lambda end: end.at_s)
    # SIGTERM is how the supervisor ends those that are left. Somebody else may have sent it to the very first.
    asked = [end.code == -signal.SIGTERM and not end.said for end in known]
    weight = [3 * (asked[n] and n > 0) or 2 * end.lost or asked[n] for n, end in enumerate(known)]
    return next((end for end, own in zip(known, weight, strict=True) if own == min(weight)), None)


def last_lines(logs: Path, local_rank: int) -> tuple[str, ...]:
    """Of what a rank wrote, the last lines that say something."""
    found: list[str] = []
    for path in sorted(logs.glob(f"*/attempt_0/{local_rank}/std*.log")):
        found += [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip(" ^~")]
    return tuple(found[-LAST_LINES:])


def as_failure(end: End, nodes: int, kills_before: int | None) -> Failed | Unavailable:
    """What the reader of a row is told. ``kills_before``: the kernel's count when the ranks were started."""
    if end.unavailable:
        return Unavailable(end.said)
    where = f" on node {end.node}" if nodes > 1 else ""
    who = f"the launcher{where}" if end.rank is None else f"rank {end.rank}{where}"
    how = "ended" if end.code is None else f"ended with {end.code}"
    if end.code is not None and end.code < 0:
        how = f"was killed by {killer(end.code)}"
    lines = end.lines[:-1] if end.said and end.lines and end.lines[-1] in end.said else end.lines
    last = f"; its last lines: {' | '.join(lines)}" if lines else ""
    text = f"{who} {how}{f': {end.said}' if end.said else ''}{last}"
    now = out_of_memory_kills()
    starved = end.code == -signal.SIGKILL and None not in (now, kills_before) and now != kills_before
    if starved or any(mark in text.lower() for mark in _FULL):
        return Failed("oom", f"{text}; the system killed it for want of memory" if starved else text)
    return Failed("crashed", text)
