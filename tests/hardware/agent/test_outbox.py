"""The outbox: nothing lost and nothing twice, whatever happens to the process, the card, the remote and the clock."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from archbench.hardware.agent.outbox import FIRST_WAIT_S, LONGEST_WAIT_S, Delivered, Outbox
from deliveries import World, filled, git, identity, is_clean, names, plant, repository, run_bytes, run_tree

KILLS = int(os.environ.get("ARCHBENCH_KILLS", "8"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_is_put_arrives_signed_once_and_in_order(world: World) -> None:
    outbox = filled(world, 2, 1)
    assert outbox.waiting() == names(1, 2)
    assert outbox.deliver() == Delivered(names(1, 2), ())
    assert outbox.waiting() == ()
    assert world.runs("pi-5") == list(names(1, 2))
    signers = f"gpg.ssh.allowedSignersFile={world.allowed}"
    shown = git(world.remote, "-c", signers, "log", "--format=%G? %GS %an %s", "machine/pi-5").stdout
    assert shown.splitlines() == [f"G pi-5 pi-5 run {name}" for name in reversed(names(1, 2))]
    assert outbox.deliver() == Delivered((), ())
    filled(world, 1, 2, 3)  # the first two are known by their names
    assert outbox.deliver() == Delivered(names(1, 2, 3), ())
    assert world.runs("pi-5") == list(names(1, 2, 3))
    assert is_clean(world.remote)
    assert is_clean(repository(outbox))
    found = world.collect()
    assert [accepted.run for accepted in found.accepted] == list(names(1, 2, 3))
    assert found.quarantined == ()


# ---- put


def test_files_no_reader_reads_stay_behind(world: World, tmp_path: Path) -> None:
    tree = run_tree("pi-5", identity(1)) | {"benchmarks.json": b"{}", "asv.log": b"x", "other": {"x.json": b"{}"}}
    tree["pi-5"] |= {".half.json": b"{", "abcd-env.json": b"{}", "deep": {"x.json": b"{}"}}
    folder = plant(tmp_path / "finished", tree)
    (folder / "pi-5" / "link.json").symlink_to("/etc/hostname")
    outbox = world.outbox("pi-5")
    outbox.put(identity(1), folder)
    kept = outbox.folder / "waiting" / identity(1)
    assert sorted(p.relative_to(kept).as_posix() for p in kept.rglob("*") if p.is_file()) == [
        "benchmarks.json",
        "pi-5/abcd-env.json",
        f"pi-5/cells/{identity(1)}.jsonl",
        "pi-5/machine.json",
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("pi-5/cells/x.jsonl", b'{"record": "ru', "is not JSON"),
        ("pi-5/cells/x.jsonl", run_bytes("pi-5", identity(1))[:-9], "ends in the middle of a line"),
        ("pi-5/cells/x.jsonl", run_bytes("pi-4", identity(1)), "does not begin with the header of a run on 'pi-5'"),
        ("pi-5/abcd-env.json", b'{"results"', "is not JSON"),
        ("pi-5/abcd-env.json", b" " * ((16 << 20) + 1), "has more than 16777216 bytes"),
    ],
)
def test_a_run_that_would_be_refused_is_not_taken(
    name: str, content: bytes, reason: str, world: World, tmp_path: Path
) -> None:
    folder = plant(tmp_path / "finished", run_tree("pi-5", identity(1)))
    (folder / name).write_bytes(content)
    outbox = world.outbox("pi-5")
    with pytest.raises(ValueError, match=reason):
        outbox.put(identity(1), folder)
    assert outbox.waiting() == ()
    assert list(outbox.folder.glob(".staged-*")) == []


def test_what_is_no_run_is_not_taken(world: World, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'\.\./x' is not a usable name"):
        world.outbox("pi-5").put("../x", tmp_path)
    with pytest.raises(ValueError, match="holds no run of 'pi-5'"):
        world.outbox("pi-5").put(identity(1), plant(tmp_path / "finished", run_tree("pi-4", identity(1))))


def test_a_disk_that_is_full_takes_nothing_and_loses_nothing(world: World) -> None:
    outbox = filled(world, 1)
    finished = plant(world.folder / "finished" / "state-pi-5" / identity(2), run_tree("pi-5", identity(2)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # no file can be longer: the nearest to a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            outbox.put(identity(2), finished)
        done = outbox.deliver()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (done.sent, done.waiting) == ((), names(1))
    assert done.reason
    assert list(outbox.folder.glob(".staged-*")) == []
    outbox.put(identity(2), finished)
    assert outbox.deliver(at_once=True) == Delivered(names(1, 2), ())


PUT = """
import sys
from pathlib import Path
from deliveries import World, identity
world = World(Path(sys.argv[1]))
outbox = world.outbox("pi-5")
print("begun", flush=True)
for number in range(int(sys.argv[2])):
    world.put(outbox, identity(number))
"""


def killed(script: str, world: World, after_s: float, *arguments: str) -> None:
    """Run a script and kill its process, and none that it started, some time after it has begun."""
    command = [sys.executable, "-c", script, str(world.folder), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)


def test_killed_while_it_takes_runs_it_has_whole_ones_only(world: World) -> None:
    for i in range(KILLS // 2):
        killed(PUT, world, 0.02 + 0.1 * i / KILLS, "100")
        outbox = world.outbox("pi-5")
        for run in outbox.waiting():
            cells = outbox.folder / "waiting" / run / "pi-5" / "cells" / f"{run}.jsonl"
            assert cells.read_bytes().count(b"\n") == 4
    waiting = len(outbox.waiting())
    outbox = filled(world, *range(waiting + 1))
    assert outbox.waiting() == names(*range(waiting + 1))
    assert list(outbox.folder.glob(".staged-*")) == []


# ---- deliver


DELIVER = """
import sys
from pathlib import Path
from deliveries import World
outbox = World(Path(sys.argv[1])).outbox("pi-5")
print("begun", flush=True)
outbox.deliver(at_once=True)
"""


def delivered(outbox: Outbox) -> Delivered:
    """Deliver until nobody else is at it: git's processes of a killed agent live on for a moment."""
    for _ in range(200):
        done = outbox.deliver(at_once=True)
        if done.reason != "another delivery is under way":
            return done
        time.sleep(0.05)
    raise AssertionError("the lock is never free")


def test_killed_at_any_moment_of_a_delivery_nothing_is_lost_and_nothing_twice(world: World) -> None:
    chance = random.Random(7)
    count = 0
    for _ in range(KILLS):
        outbox = filled(world, count, count + 1)
        count += 2
        killed(DELIVER, world, chance.uniform(0.0, 0.6))
    done = delivered(outbox)
    assert (done.waiting, done.reason) == ((), "")
    assert world.runs("pi-5") == list(names(*range(count)))
    assert is_clean(world.remote)
    assert is_clean(repository(outbox))
    found = world.collect()
    assert ([accepted.run for accepted in found.accepted], found.quarantined) == (list(names(*range(count))), ())


@pytest.mark.parametrize("hook", ["pre-receive", "update", "post-receive"])
def test_a_receiver_killed_in_the_middle_of_a_push(hook: str, world: World) -> None:
    script = world.remote / "hooks" / hook
    script.parent.mkdir(exist_ok=True)
    script.write_text("#!/bin/sh\nkill -9 $PPID\n")
    script.chmod(0o755)
    outbox = filled(world, 1, 2)
    done = outbox.deliver()
    arrived = hook == "post-receive"  # then only the answer is lost, and the remote is asked
    assert (done.sent, done.waiting) == ((names(1, 2), ()) if arrived else ((), names(1, 2)))
    assert bool(done.reason) is not arrived
    script.unlink()
    filled(world, 3)
    done = outbox.deliver(at_once=True)
    assert (done.waiting, done.reason) == ((), "")
    assert world.runs("pi-5") == list(names(1, 2, 3))
    assert is_clean(world.remote)


def test_two_at_once_take_turns(world: World) -> None:
    outbox = filled(world, 1)
    with outbox._lock("lock", wait=False):
        assert outbox.deliver() == Delivered((), names(1), "another delivery is under way")
    assert outbox.deliver() == Delivered(names(1), ())


def test_without_a_network_it_waits_longer_each_time_and_forgets_when_it_works(world: World) -> None:
    now = [1000.0]
    outbox = Outbox(world.config("pi-5"), lambda: now[0])
    world.put(outbox, identity(1))
    away = world.remote.rename(world.folder / "away.git")
    waits = []
    for failures in range(1, 12):
        done = outbox.deliver()
        assert (done.sent, done.waiting) == ((), names(1))
        assert "does not appear to be a git repository" in done.reason
        waits.append(outbox.backoff().left_s(now[0]))
        assert outbox.backoff().failures == failures
        assert outbox.deliver().reason.startswith(f"next attempt in {waits[-1]:.0f} s, after: git ls-remote")
        assert outbox.backoff().failures == failures
        now[0] += waits[-1]
    assert 0.75 * FIRST_WAIT_S <= waits[0] <= FIRST_WAIT_S
    assert all(b > a for a, b in pairwise(waits[:8]))
    assert 0.75 * LONGEST_WAIT_S <= waits[-1] <= LONGEST_WAIT_S
    outbox.deliver()
    away.rename(world.remote)
    now[0] -= 86400.0  # the clock was moved back a day: nobody waits for it to come again
    assert outbox.deliver() == Delivered(names(1), ())
    assert outbox.backoff().failures == 0


def test_a_pause_that_cannot_be_read_is_none(world: World) -> None:
    outbox = filled(world, 1)
    (outbox.folder / "backoff.json").write_bytes(b"")
    assert outbox.backoff().failures == 0
    assert outbox.deliver() == Delivered(names(1), ())


def test_a_key_that_is_damaged_is_the_reason(world: World) -> None:
    outbox = filled(world, 1)
    outbox.config.key.write_bytes(b"")
    done = outbox.deliver()
    assert (done.sent, done.waiting) == ((), names(1))
    assert "cannot be used" in done.reason
