"""What fails around a board: a disk of 8 MiB that is full, and a network that is cut.

The state folder, then the remote, lie on a file system of 8 MiB which a ballast fills up to some space. The network is
a pair of virtual cards: the repositories are served by ``git daemon`` from a network namespace of its own, whose end
of the cable is taken down.

Source: tmpfs(5), ip-netns(8), git-daemon(1)
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent_world import World, make_world

DISK_BYTES = 8 << 20
LEFT_KIB = (0, 40, 4000, 0, 8, 20, 40, 60, 80, 120, 200)  # enough for a clone from the third on
SPACE, HERE, THERE = "archbench-faults", "10.213.77.1", "10.213.77.2"
PORT = 9418


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A file system of 8 MiB at ``place``, with what lies there."""
    aside = place.with_name(f"{place.name}.aside")
    os.rename(place, aside)
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)], check=True)
    try:
        subprocess.run(["cp", "-a", f"{aside}/.", str(place)], check=True)
        yield
        place_after = place.with_name(f"{place.name}.after")
        subprocess.run(["cp", "-a", str(place), str(place_after)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
    place.rmdir()
    os.rename(place_after, place)


@contextmanager
def ballast(place: Path, left_kib: int) -> Iterator[None]:
    """The file system at ``place`` filled up, but for some space."""
    file = place / "ballast"
    with file.open("wb") as opened:
        space = os.statvfs(place)
        wanted = max(0, space.f_bavail * space.f_frsize - (left_kib << 10))
        os.posix_fallocate(opened.fileno(), 0, max(wanted, 1))
    try:
        yield
    finally:
        file.unlink()


def full_disks(folder: Path) -> tuple[str, list[str]]:
    """A state folder, then a remote, with little space: a reason, no traceback, and all of it later."""
    world = make_world(folder)
    problems = []
    failed = 0
    for where in (world.state, world.remote):
        with small_disk(where):
            for left_kib in LEFT_KIB:
                with ballast(where, left_kib):
                    code, said = world.look()
                problems += [f"{left_kib} KiB left for {where.name}: {said[-300:]}"] if "Traceback" in said else []
                problems += [f"{left_kib} KiB left: exit {code}: {said[-200:]}"] if code not in (0, 1) else []
                failed += code == 1
                if not world.missing(world.at_remote()):
                    world.commit()
            problems += [f"with space again, {found}" for found in world.finish()]
            world.commit()
    problems += world.finish()
    problems += [] if failed > len(LEFT_KIB) // 2 else [f"only {failed} looks met a full disk"]
    return f"{2 * len(LEFT_KIB)} looks with 0 to {max(LEFT_KIB)} KiB left, {failed} failed", problems + world.taken()


@contextmanager
def cable() -> Iterator[None]:
    """Two network cards that are joined, one of them in a namespace of its own."""
    steps = [
        f"ip netns add {SPACE}",
        f"ip link add archbench0 type veth peer name archbench1 netns {SPACE}",
        f"ip addr add {HERE}/24 dev archbench0",
        "ip link set archbench0 up",
        f"ip -n {SPACE} addr add {THERE}/24 dev archbench1",
        f"ip -n {SPACE} link set archbench1 up",
        f"ip -n {SPACE} link set lo up",
    ]
    try:
        for step in steps:
            subprocess.run(step.split(), check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "del", SPACE])


def plug(state: str) -> None:
    subprocess.run(["ip", "-n", SPACE, "link", "set", "archbench1", state], check=True)


def network(folder: Path, cut_s: float) -> tuple[str, list[str]]:
    """The cable out before the fetch, and while a push is under way, for ``cut_s`` seconds each."""
    world = make_world(folder)
    address = f"git://{THERE}:{PORT}"
    world.configure(repository=f"{address}/source/.git", remote=f"{address}/remote.git")
    hook = world.remote / "hooks" / "pre-receive"
    real = hook.rename(hook.with_name("real-pre-receive"))
    slow, reached = world.folder / "slow", world.folder / "reached"
    hook.write_text(f"#!/bin/sh\nif [ -e {slow} ]; then touch {reached}; sleep 3; fi\nexec {real}\n")
    hook.chmod(0o755)
    problems = []
    with cable(), serving(world):
        code, said = world.look()
        problems += [f"before the cut: exit {code}: {said[-300:]}"] if code else []
        world.commit()
        plug("down")
        began = time.monotonic()
        code, said = world.look()
        without_s = time.monotonic() - began
        problems += ["the cut was not noticed"] if code == 0 else []
        time.sleep(max(0.0, cut_s - without_s))
        plug("up")
        problems += world.finish()
        world.commit()
        slow.touch()
        process = world.start()
        while not reached.exists() and process.poll() is None:
            time.sleep(0.05)
        plug("down")
        slow.unlink()
        time.sleep(cut_s)
        plug("up")
        said, _ = process.communicate(timeout=1200)
        problems += [said[-400:]] if "Traceback" in said else []
        problems += world.finish()
    what = f"a look without network took {without_s:.0f} s; cut for {cut_s:g} s in mid-push"
    return what, problems + world.taken()


@contextmanager
def serving(world: World) -> Iterator[None]:
    """``git daemon`` at the other end of the cable."""
    command = ["ip", "netns", "exec", SPACE, "git", "daemon", "--reuseaddr", f"--listen={THERE}", f"--port={PORT}"]
    command += [f"--base-path={world.folder}", "--export-all", "--enable=receive-pack", str(world.folder)]
    daemon = subprocess.Popen(command, env=world.environment, start_new_session=True)
    try:
        time.sleep(1)
        yield
    finally:
        os.killpg(daemon.pid, 15)
        daemon.wait()
