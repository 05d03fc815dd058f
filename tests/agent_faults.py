"""The agent under fire: is any result lost or delivered twice, and does the next look go on?

Each fault is done to a small world of its own (``agent_world.py``): ``kill -9`` at random points of the agent's life,
a receiver that is killed in mid-push, disks that are full, a network that is cut, two agents at once, a clock that is
moved, and branches nobody should believe. After each the agent looks again as its timer would; then the rows at the
remote are counted, both repositories are checked, and `collect` takes everything, once. Needs root, for namespaces and
mounts, and a C compiler, for a clock that is wrong.

usage: agent_faults.py [--kills N] [--cut SECONDS] [--seed N] [FAULT ...]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from agent_surroundings import full_disks, network
from agent_world import kill_all, kill_one, make_world
from deliveries import World as Deliveries
from deliveries import is_clean
from delivery_attacks import ATTACKS, attack, begin, push

# What is seen of the agent while it does something: a word of a child's command line, or a file.
POINTS = {
    "fetching": ("fetch --quiet", ""),
    "installing": ("pip install", ""),
    "measuring": ("archbench run", ""),
    "putting": ("", "work/*/results/*/cells/*.jsonl"),
    "signing": ("commit-tree", ""),
    "pushing": ("push --quiet", ""),
}
LASTS_S = {"installing": 5.0, "measuring": 4.0, "anywhere": 8.0}  # the others are over in a moment
LIFE_S = 60.0  # of a look, at most, on a busy machine
RECEIVERS = 8  # that are killed at a random moment
CLOCK = """
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    const char *by = getenv("CLOCK_MOVED_S");
    if (!failed && by && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += atol(by);
    return failed;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *to) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (to) *to = exact.tv_sec;
    return exact.tv_sec;
}
"""
Told = tuple[str, list[str]]  # what was done, and what is wrong afterwards


def own_environment(folder: Path) -> dict[str, object]:
    """Settings with which the agent makes and fills an environment of its own, from what this one holds."""
    lent = folder / "lent"
    lent.mkdir(parents=True)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "archbench" not in path.name:
            (lent / path.name).symlink_to(path)
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PYTHONPATH": str(lent), "ASV_PYTHONPATH": str(lent)}
    return {"python": "", "extras": (), "environment": offline}


def doing(process: psutil.Process, state: Path, point: str) -> bool:
    """Whether the agent is at a point of its life."""
    word, pattern = POINTS[point]
    if pattern and next(iter(state.glob(pattern)), None) is not None:
        return True
    with contextlib.suppress(psutil.Error):
        children = process.children(recursive=True)
        return bool(word) and any(word in " ".join(child.cmdline()) for child in children)
    return False


def kills(folder: Path, options: argparse.Namespace) -> Told:
    """kill -9 at random points of a full life: of the agent alone, and of all it started as a loss of power does."""
    chance = random.Random(options.seed)
    world = make_world(folder, **(own_environment(folder) if options.install else {}))
    hit: Counter[str] = Counter()
    while hit.total() < options.kills:
        if not world.missing(world.at_remote()):
            world.commit(requires=chance.random() < 0.5)
        world.wait_for_the_lock()
        world.forget_pause()
        point = chance.choice([*POINTS, "anywhere"])
        process = world.start()
        watched, ends = psutil.Process(process.pid), time.monotonic() + LIFE_S
        if point == "anywhere":
            time.sleep(chance.uniform(0, LASTS_S["anywhere"]))
        else:
            while process.poll() is None and time.monotonic() < ends and not doing(watched, world.state, point):
                time.sleep(0.001)
            time.sleep(chance.uniform(0, LASTS_S.get(point, 0.05)))
        if process.poll() is None:
            (kill_all if hit.total() % 2 else kill_one)(process)
            hit[point] += 1
        process.communicate()
    points = ", ".join(f"{count} {point}" for point, count in sorted(hit.items()))
    problems = world.finish()
    again = sum(count > 1 for count in Counter(run[0] for run in world.runs()).values())
    return f"{hit.total()} kills ({points}); {len(world.commits)} commits", problems + world.taken() + (
        [f"{again} commits have several runs"] if again else []
    )


def receivers(folder: Path, options: argparse.Namespace) -> Told:
    """The receiver killed while objects arrive, before and after the branch is moved, and at random moments."""
    chance = random.Random(options.seed)
    world = make_world(folder)
    hooks = world.remote / "hooks"
    real = (hooks / "pre-receive").rename(hooks / "real-pre-receive")
    for name, then in (("pre-receive", f"exec {real}"), ("post-receive", "exit 0")):
        # The hook's parent is git-receive-pack.
        flag = world.folder / f"kill-in-{name}"
        (hooks / name).write_text(f"#!/bin/sh\nif [ -e {flag} ]; then rm {flag}; kill -9 $PPID; exit 1; fi\n{then}\n")
        (hooks / name).chmod(0o755)
    problems, failed = [], 0
    moments = ["pre-receive", "post-receive", *["anywhere"] * RECEIVERS]
    for moment in moments:
        world.commit()
        if moment == "anywhere":
            process = world.start()
            ends = time.monotonic() + LIFE_S
            while not (found := receiving(world.remote)) and process.poll() is None and time.monotonic() < ends:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.2))
            for receiver in found:
                with contextlib.suppress(psutil.Error):
                    receiver.kill()
            process.communicate(timeout=LIFE_S * 5)
            code = process.returncode
        else:
            (world.folder / f"kill-in-{moment}").touch()
            code, _ = world.look()
        failed += code != 0
        problems += [f"killed at {moment}: {found}" for found in world.finish()]
    return f"{len(moments)} kills, {failed} looks noticed", problems + world.taken()


def receiving(remote: Path) -> list[psutil.Process]:
    """git's processes that receive into a repository."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.endswith("receive-pack") for word in words) and str(remote) in " ".join(words):
            found.append(process)
    return found


def two_agents(folder: Path, options: argparse.Namespace) -> Told:
    """Two looks of one agent at the same moment, a few times."""
    world = make_world(folder)
    codes: Counter[int] = Counter()
    for _ in range(options.pairs):
        world.commit()
        both = [world.start(), world.start()]
        for process in both:
            process.communicate(timeout=LIFE_S * 5)
            codes[process.returncode] += 1
    problems = [] if set(codes) == {0, 3} else [f"exit codes {dict(codes)}: 0, and 3 for the second, were expected"]
    return f"{options.pairs} pairs, exit codes {dict(codes)}", problems + world.finish() + world.taken()


def moved_clock(folder: Path, by_s: int) -> dict[str, str]:
    """Variables with which programs see the day ``by_s`` seconds from now; how time passes stays."""
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return {"LD_PRELOAD": str(library), "CLOCK_MOVED_S": str(by_s)}


def clock(folder: Path, options: argparse.Namespace) -> Told:
    """The clock moved back a day after a delivery and in mid-run, then forward again."""
    world = make_world(folder)
    problems = world.finish()
    old = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3 * 86400))
    yesterday = moved_clock(folder, -86400)
    world.commit(date=old)
    code, said = world.look(**yesterday)
    problems += [f"yesterday, a commit of three days ago: exit {code}: {said[-300:]}"] if code else []
    problems += [] if "the clock was moved back" in said else [f"nobody noticed: {said[-300:]}"]
    if options.midrun:
        world.commit(date=old)
        process = world.start()
        while process.poll() is None and not doing(psutil.Process(process.pid), world.state, "measuring"):
            time.sleep(0.01)
        time.sleep(2)
        kill_all(process)
        process.communicate()
        code, said = world.look(**yesterday)
        problems += [f"a run that was cut off goes on yesterday: exit {code}: {said[-300:]}"] if code else []
    world.commit()
    code, said = world.look(**yesterday)
    problems += [] if code == 1 and "the clock is behind" in said else [f"a commit of tomorrow: {code}, {said[-300:]}"]
    problems += world.finish()
    return "back a day after a delivery, in mid-run, before a commit", problems + world.taken()


def forgeries(folder: Path, options: argparse.Namespace) -> Told:
    """What nobody should believe, each on a branch of its own: quarantined by name, and nobody else held up."""
    world, attacks = begin(folder, list(ATTACKS))
    problems = [] if collected_by(world)[0] == 0 else ["the first deliveries were not all collected"]
    attack(attacks, ATTACKS)
    done = push(attacks, *attacks)
    problems += [done.stderr[-300:]] if done.returncode else []
    code, found = collected_by(world)
    stopped = {item["branch"].rpartition("/")[2]: item["reason"] for item in found["quarantined"]}
    for name, (_, reason) in ATTACKS.items():
        if reason not in stopped.get(name, ""):
            problems.append(f"{name}: {stopped.get(name, 'was collected')}; expected: {reason}")
        if len(world.collected(name)) != 1:
            problems.append(f"{name}: {len(world.collected(name))} runs are among the results")
    problems += [] if code == 1 and len(world.collected("honest")) == 2 else ["the honest machine was held up"]
    problems += [] if is_clean(world.state / "mirror.git") else ["the collector's mirror is not clean"]
    return f"{len(ATTACKS)} attacks: {', '.join(ATTACKS)}", problems


def collected_by(world: Deliveries) -> tuple[int, dict[str, Any]]:
    """``archbench agent collect`` of such a world: exit code and JSON."""
    revoked = ["--revoked-keys", str(world.revoked)] if world.revoked.exists() else []
    command = [sys.executable, "-m", "archbench", "agent", "collect", str(world.remote), "--json", *revoked]
    command += ["--results", str(world.results), "--allowed-signers", str(world.allowed), "--state", str(world.state)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout or "{}")


FAULTS: dict[str, Callable[[Path, argparse.Namespace], Told]] = {
    "kills": kills,
    "receivers": receivers,
    "disks": lambda folder, options: full_disks(folder),
    "network": lambda folder, options: network(folder, options.cut),
    "two": two_agents,
    "clock": clock,
    "forgeries": forgeries,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument(
        "--cut",
        type=float,
        default=60.0,
        help="seconds without network; after 60 a push over git:// waits for its limit of 15 minutes",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=3, help="of two agents at once")
    parser.add_argument("--python", dest="install", action="store_false", help="kills: without installing anything")
    parser.set_defaults(midrun=True)
    parser.add_argument("faults", nargs="*", choices=[*FAULTS, []], help="all when left out")
    options = parser.parse_args()
    missing = [name for name in ("cc", "ip", "mount", "flock") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        sys.exit(
            f"agent_faults: needs root and the programs {', '.join(missing) or 'it has'}: apt-get install faketime"
        )
    bad = 0
    for name in options.faults or FAULTS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"archbench-{name}-") as folder:
            what, problems = FAULTS[name](Path(folder), options)
        bad += bool(problems)
        print(f"{'FAILED' if problems else 'ok':8}{name:12}{time.monotonic() - began:5.0f} s  {what}", flush=True)
        for problem in problems:
            print(f"{'':20}{problem}", flush=True)
    sys.exit(f"agent_faults: {bad} of the faults did harm" if bad else 0)


if __name__ == "__main__":
    main()
