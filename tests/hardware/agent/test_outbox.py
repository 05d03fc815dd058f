"""The outbox: nothing lost and nothing twice, whatever happens to the process, the card, the remote and the clock."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from deliveries import Forge, World, git, identity, is_clean, plant, run_bytes, run_tree

from archbench.hardware.agent import deliver as delivering
from archbench.hardware.agent.deliver import Courier
from archbench.hardware.agent.outbox import FIRST_WAIT_S, LONGEST_WAIT_S, Delivered, Outbox
from archbench.hardware.agent.signed_git import Git

KILLS = int(os.environ.get("ARCHBENCH_KILLS", "8"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def filled(world: World, *numbers: int, state: str = "") -> Outbox:
    outbox = world.outbox("pi-5", state)
    for number in numbers:
        world.put(outbox, identity(number))
    return outbox


def names(*numbers: int) -> tuple[str, ...]:
    return tuple(map(identity, numbers))


def repository(outbox: Outbox) -> Path:
    return outbox.folder / "repository.git"


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
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # no file can be longer: the nearest to a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            filled(world, 2)
        done = outbox.deliver()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (done.sent, done.waiting) == ((), names(1))
    assert done.reason
    assert list(outbox.folder.glob(".staged-*")) == []
    world.put(outbox, identity(2))
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


# ---- cards and remotes that are not what they were


def test_a_card_restored_to_an_older_day_goes_on_from_the_remotes_day(world: World) -> None:
    outbox = filled(world, 1)
    outbox.deliver()
    shutil.copytree(world.folder / "state-pi-5", world.folder / "backup")
    filled(world, 2, 3)
    outbox.deliver()
    shutil.rmtree(world.folder / "state-pi-5")
    (world.folder / "backup").rename(world.folder / "state-pi-5")
    outbox = filled(world, 2, 4)  # one it delivered already and does not remember
    assert outbox.deliver() == Delivered(names(2, 4), ())
    assert world.runs("pi-5") == list(names(1, 2, 3, 4))


def test_a_new_card_with_the_old_key_goes_on(world: World) -> None:
    filled(world, 1, 2).deliver()
    outbox = filled(world, 3, state="new-card")
    assert outbox.deliver() == Delivered(names(3), ())
    assert world.runs("pi-5") == list(names(1, 2, 3))


@pytest.mark.parametrize("left", ["one", "none"])
def test_a_remote_restored_from_a_backup_gets_the_very_commits_it_had(left: str, world: World) -> None:
    outbox = filled(world, 1, 2, 3)
    outbox.deliver()
    assert len(world.collect().accepted) == 3
    tip = git(world.remote, "rev-parse", "machine/pi-5").stdout.strip()
    if left == "one":
        git(world.remote, "update-ref", "refs/heads/machine/pi-5", f"{tip}~2")
    else:
        git(world.remote, "update-ref", "-d", "refs/heads/machine/pi-5")
    filled(world, 4)
    assert outbox.deliver() == Delivered(names(4), ())
    assert world.runs("pi-5") == list(names(1, 2, 3, 4))
    assert git(world.remote, "rev-parse", "machine/pi-5~1").stdout.strip() == tip
    assert world.collect().quarantined == ()


def test_a_remote_with_another_history_gets_what_it_lacks(world: World) -> None:
    outbox = filled(world, 1, 2)
    outbox.deliver()
    forge = Forge(world.remote)
    forge.point("machine/pi-5", forge.commit({"runs": {identity(7): run_tree("pi-5", identity(7))}}))
    filled(world, 3)
    assert outbox.deliver() == Delivered(names(3), ())
    assert world.runs("pi-5") == list(names(1, 2, 3, 7))


def test_somebody_who_pushes_in_between_is_built_upon(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = filled(world, 1)
    once = iter([True])
    commit: Callable[..., str | None] = Courier._commit

    def slow(self: Courier, *arguments: object) -> str | None:
        made = commit(self, *arguments)
        if next(once, False):
            forge = Forge(world.remote)
            forge.point("machine/pi-5", forge.commit({"runs": {identity(7): run_tree("pi-5", identity(7))}}))
        return made

    monkeypatch.setattr(Courier, "_commit", slow)
    assert outbox.deliver() == Delivered(names(1), ())
    assert world.runs("pi-5") == list(names(1, 7))


def test_a_remote_that_forgets_what_is_pushed_is_not_believed(world: World) -> None:
    forget = world.remote / "hooks" / "post-receive"
    forget.parent.mkdir(exist_ok=True)
    forget.write_text("#!/bin/sh\ngit update-ref -d refs/heads/machine/pi-5\n")
    forget.chmod(0o755)
    outbox = filled(world, 1)
    assert outbox.deliver() == Delivered((), names(1), "the remote does not show what was pushed to it")


def test_another_run_of_the_same_name_is_kept_and_said(world: World) -> None:
    filled(world, 1).deliver()
    outbox = filled(world, 1, 2, state="other-card")  # with samples of its own
    done = outbox.deliver()
    assert (done.sent, done.waiting) == (names(2), names(1))
    assert "holds something else under the name of run" in done.reason


# ---- a repository that a power cut broke


def damage_objects(place: Path) -> None:
    for path in list((place / "objects").rglob("*")):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"")


def damage_names(place: Path) -> None:
    for name in ("HEAD", "config"):
        (place / name).write_bytes(b"")


def leave_locks(place: Path) -> None:
    for name in ("refs/heads/machine/pi-5.lock", "packed-refs.lock", "HEAD.lock", "refs/archbench/delivered.lock"):
        (place / name).touch()
    (place / "objects" / "tmp_objdir-abc").mkdir()
    (place / "objects" / "pack" / "tmp_pack_abc").touch()


def half_of_it(place: Path) -> None:
    shutil.rmtree(place / "refs")


@pytest.mark.parametrize("damage", [damage_objects, damage_names, leave_locks, half_of_it])
def test_a_broken_repository_is_mended_or_made_again(damage: Callable[[Path], None], world: World) -> None:
    outbox = filled(world, 1, 2)
    outbox.deliver()
    damage(repository(outbox))
    (outbox.folder / "repository.git.in-use").touch()  # there before anything is written, gone when all is
    filled(world, 3)
    assert outbox.deliver() == Delivered(names(3), ())
    assert world.runs("pi-5") == list(names(1, 2, 3))
    assert is_clean(repository(outbox))
    assert not (outbox.folder / "repository.git.in-use").exists()


def test_many_small_objects_are_packed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivering, "LOOSE", 5)
    outbox = filled(world, 1, 2)
    assert outbox.deliver() == Delivered(names(1, 2), ())
    assert Git(repository(outbox)).text("count-objects").startswith("0 objects")
    filled(world, 3)
    assert outbox.deliver() == Delivered(names(3), ())
    assert is_clean(repository(outbox))
