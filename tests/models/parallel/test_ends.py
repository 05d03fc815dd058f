"""Who was the first to end, from what is left behind; no rank is started."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from archbench.models.parallel._launch import ends as _ends
from archbench.models.parallel._launch.ends import End, as_failure, first, gathered, note
from archbench.models.parallel._launch.hang import late
from archbench.track import Failed, Unavailable

LOST = "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
KILLED = End(rank=1, code=-9, at_s=2.0)
FOLLOWS = End(rank=0, code=1, at_s=1.9, said=LOST)


@pytest.mark.parametrize(
    ("ends", "rank"),
    [
        ([FOLLOWS, KILLED], 1),  # who lost a connection may have written so before the killed one is seen
        ([End(rank=0, code=-15, at_s=2.1), KILLED], 1),  # ended by the supervisor
        ([End(rank=0, code=-15, at_s=1.0), End(rank=1, code=1, at_s=1.1, said=LOST)], 0),  # ended by somebody else
        ([End(rank=0, code=1, at_s=3.0, said="ValueError: no"), FOLLOWS], 0),
        ([End(rank=0, code=-6, at_s=1.0, lines=("terminate called", LOST)), KILLED], 1),
        ([End(rank=1, code=0, at_s=1.0), FOLLOWS], 1),  # left without a word
        ([FOLLOWS, End(rank=2, code=1, at_s=2.5, said=LOST)], 0),  # nothing better is known
    ],
)
def test_the_first_end_is_the_one_the_others_follow_from(ends: list[End], rank: int) -> None:
    for order in (ends, ends[::-1]):
        assert first(order) is not None
        assert first(order).rank == rank  # type: ignore[union-attr]
    assert first([]) is None


def test_ends_are_read_from_the_folder_of_the_ranks(tmp_path: Path) -> None:
    (tmp_path / "pid-11").write_text("2 0")
    (tmp_path / "pid-12").write_text("3 1")
    (tmp_path / "pid-13").write_text("")  # ended while it wrote
    note(tmp_path, 3, ValueError("no\nmore"))
    log = tmp_path / "logs" / "x" / "attempt_0" / "0"
    log.mkdir(parents=True)
    (log / "stderr.log").write_text("\n".join(map(str, range(9))) + "\n\n")
    found = {end.rank: end for end in gathered(tmp_path, 1, 2, {11: (0, -9)}, {12: 5.0, 13: 4.0})}
    assert set(found) == {2, 3}
    assert (found[2].code, found[2].lines, found[2].node) == (-9, ("4", "5", "6", "7", "8"), 1)
    assert (found[3].code, found[3].said) == (0, "ValueError: no")
    assert found[3].at_s > 0


def test_a_failure_says_who_how_and_what_was_said_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ends, "out_of_memory_kills", lambda: 4)
    said = as_failure(End(rank=1, code=-9, lines=("a", "b")), 1, 4)
    assert isinstance(said, Failed)
    assert (said.status, str(said)) == ("crashed", "rank 1 was killed by SIGKILL; its last lines: a | b")
    starved = as_failure(End(rank=1, node=1, code=-9), 2, 3)
    assert isinstance(starved, Failed)
    assert starved.status == "oom"
    assert str(starved).startswith("rank 1 on node 1 was killed by SIGKILL")
    full = as_failure(End(rank=0, code=1, said="RuntimeError: DefaultCPUAllocator: can't allocate memory"), 1, 4)
    assert isinstance(full, Failed)
    assert full.status == "oom"
    assert str(as_failure(End(rank=None, said="RendezvousTimeoutError: "), 1, 4)).startswith("the launcher ended: Rend")
    nothing = as_failure(End(rank=0, code=1, said="needs 2 GPUs", unavailable=True), 1, 4)
    assert isinstance(nothing, Unavailable)
    assert str(nothing) == "needs 2 GPUs"


def test_a_rank_that_is_behind_in_its_notes_is_named(tmp_path: Path) -> None:
    said = late(tmp_path, {}, [(3, 2), (3, 1), (3, 2)], range(3), 1)
    assert said == "rank 1 did not go on (rank 1: not begun, in update 1 of call 3)"


def test_a_stack_tells_who_waits_and_who_does_not(tmp_path: Path) -> None:
    """What faulthandler writes: threads, newest first, and of each the innermost frame first."""
    waits = 'Thread 0x1 (most recent call first):\n  File "/x/torch/distributed/c10d.py", line 9 in all_reduce\n'
    works = 'Current thread 0x2 (most recent call first):\n  File "/home/me/slow.py", line 12 in step\n'
    (tmp_path / "stack-0").write_text(
        f"{works}\n{waits}".replace("Current t", "T", 1).replace("Thread 0x1", "Current thread 0x1")
    )
    (tmp_path / "stack-1").write_text(f"{waits}\n{works}")
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        said = late(tmp_path, {0: os.getpid(), 1: os.getpid()}, [(1, 1), (1, 1)], range(2), 1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert said == "rank 1 did not go on (rank 1: is in step (slow.py:12), in update 1 of call 1)"


def test_where_all_wait_here_the_others_are_named(tmp_path: Path) -> None:
    (tmp_path / "stack-0").write_text(
        'Current thread 0x1:\n  File "/x/torch/distributed/c10d.py", line 9 in all_reduce\n'
    )
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        said = late(tmp_path, {0: os.getpid()}, [(1, 1), (0, 0)], range(1), 2)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert re.match(r"no word from rank 1 on node 1; rank 0: waits in all_reduce", said)
    said = late(tmp_path, {}, [(0, 0), (0, 0)], range(1), 2)
    assert said == "no word from rank 1 on node 1; rank 0: not begun, before the first call"
