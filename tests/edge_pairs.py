"""Two contenders of ``edge_llm`` in fresh processes, one after the other in random order, as many pairs as asked.

A process has a speed of its own (where its memory lies, who its neighbours are), so repetitions inside one say little
about the next: here every time is a process that loads the model, makes one pass unseen and times some. The ratio of a
pair is what counts; both sides saw the same minute. Threads that wait for one another are slowed many times over by a
neighbour, and not by the same factor twice: a pair is made again, up to three times as many in all, where other
processes used a fifth of the cores, and the calmest are summed up. A path in a contender's place is a ``llama-bench``,
which is asked for the same case. ``--than`` gives the second side another case. Run by hand, it is no part of the test
suite:

    python tests/edge_pairs.py llama_cpp /path/to/llama-bench --case smollm2_135m-q4_0-tg128 --pairs 7
    python tests/edge_pairs.py ort_fused llama_cpp --case tinyllama_1b1_random-q4_0-tg32-t1
    python tests/edge_pairs.py llama_cpp llama_cpp --case smollm2_135m-q4_0-tg32-d2048 --than smollm2_135m-q4_0-tg32
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median

import psutil

from archbench.discovery import load_contender
from archbench.hardware.cpu import usable_cores
from archbench.harness.neighbours import wait_for_quiet
from archbench.models.edge_llm import TRACK, EdgeCase
from archbench.models.edge_llm._artefacts import path
from archbench.stats import hodges_lehmann

Side = tuple[str, EdgeCase]  # a contender or a path, and what it is asked

ATTEMPTS = 3  # times the pairs asked for
CROWDED = 0.2  # share of all cores that others had; some of it while a model was read on one core
SLUG = re.compile(
    r"(?P<model>\w+)-(?P<weights>\w+)-(?P<phase>pp|tg)(?P<tokens>\d+)"
    r"(-d(?P<depth>\d+))?(-kv-(?P<kv>\w+))?(-t(?P<threads>\d+))?"
)


def case_of(slug: str) -> EdgeCase:
    """The case of a slug, of the track's lists or not. Raises ValueError."""
    match = SLUG.fullmatch(slug)
    if not match:
        raise ValueError(f"{slug!r} is no case: MODEL-WEIGHTS-ppN or -tgN, then -dN, -kv-KIND and -tN where wanted")
    words = {name: value for name, value in match.groupdict().items() if value is not None}
    numbers = {name: int(words.pop(name)) for name in ("tokens", "depth", "threads") if name in words}
    return EdgeCase(**words, **numbers)


def timed(contender: str, case: EdgeCase, calls: int) -> list[float]:
    """Seconds per token of each call, in this process."""
    found = load_contender(TRACK.name, contender)
    if found.entry is None:
        raise SystemExit(f"{contender}: {found.reason}")
    work = TRACK.workload(case, found.entry.build(case))
    inputs = [TRACK.make_inputs(case, seed, "cpu") for seed in range(calls + 1)]
    work(*inputs.pop())
    seconds = []
    for one in inputs:
        start = time.perf_counter()
        work(*one)
        seconds.append((time.perf_counter() - start) / case.tokens)
    return seconds


def command(name: str, case: EdgeCase, calls: int) -> list[str]:
    """What measures one side in a process of its own."""
    if os.sep not in name:
        return [sys.executable, __file__, name, "--case", case.slug, "--calls", str(calls)]
    asked = {"pp": case.tokens if case.phase == "pp" else 0, "tg": case.tokens if case.phase == "tg" else 0}
    threads = case.threads or usable_cores()
    options = {"-p": asked["pp"], "-n": asked["tg"], "-d": case.depth, "-t": threads, "-r": calls, "-o": "json"}
    options |= {"-m": path(case.model, case.weights), "-ctk": case.kv, "-ctv": case.kv}
    return [name, *(str(word) for option in options.items() for word in option)]


def fresh(name: str, case: EdgeCase, calls: int) -> float:
    """The median seconds per token of a new process."""
    done = subprocess.run(command(name, case, calls), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    answer = json.loads(done.stdout)
    if os.sep in name:
        return median(ns / 1e9 / case.tokens for ns in answer[0]["samples_ns"])
    return median(answer)


class Neighbours:
    """What other processes took of the cores since this was made, as a share."""

    def __init__(self) -> None:
        self._before = self._look()

    def share(self) -> float:
        busy, own, wall = (now - then for now, then in zip(self._look(), self._before, strict=True))
        return max(0.0, busy - own) / wall / (os.cpu_count() or 1)

    @staticmethod
    def _look() -> tuple[float, float, float]:
        cpu, own = psutil.cpu_times(), os.times()
        return sum(cpu) - cpu.idle - getattr(cpu, "iowait", 0.0), sum(own[:4]), own.elapsed


def pair(sides: Sequence[Side], calls: int) -> tuple[float, float, float]:
    """Seconds per token of both sides, and what others took of the cores meanwhile."""
    seconds = [0.0, 0.0]
    wait_for_quiet()
    neighbours = Neighbours()
    for side in random.sample((0, 1), 2):
        seconds[side] = fresh(*sides[side], calls)
    return seconds[0], seconds[1], neighbours.share()


def pairs(sides: Sequence[Side], count: int, calls: int) -> None:
    one, two = (os.path.basename(name) for name, _ in sides)
    found: list[tuple[float, float]] = []  # share of others, log ratio
    while sum(others <= CROWDED for others, _ in found) < count and len(found) < ATTEMPTS * count:
        first, second, others = pair(sides, calls)
        found.append((others, math.log(first / second)))
        times = f"{one} {first * 1e3:.3f} ms, {two} {second * 1e3:.3f} ms"
        print(f"pair {len(found)}: {times}, ratio {first / second:.4f}, others {others:.0%}", flush=True)
    calm = sorted(found)[:count]
    interval = hodges_lehmann([ratio for _, ratio in calm]).exp()
    asked = " over ".join(f"{os.path.basename(name)} at {case.slug}" for name, case in sides)
    print(
        f"seconds per token of {asked}: median {math.exp(median(ratio for _, ratio in calm)):.4f}, 95 % interval of "
        f"the centre [{interval.lo:.4f}, {interval.hi:.4f}], the {len(calm)} calmest of {len(found)} pairs "
        f"(others {calm[-1][0]:.0%} at most)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="two contenders; one: its seconds per token in this process, as JSON")
    parser.add_argument("--case", required=True, type=case_of, help="a slug; sizes may be others than the track's")
    parser.add_argument("--than", type=case_of, help="the second contender's case, where it is another")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--calls", type=int, default=5, help="timed passes of a process")
    asked = parser.parse_args()
    if len(asked.names) == 1:
        print(json.dumps(timed(asked.names[0], asked.case, asked.calls)))
    elif len(asked.names) == 2:
        pairs(list(zip(asked.names, (asked.case, asked.than or asked.case), strict=True)), asked.pairs, asked.calls)
    else:
        parser.error("one contender or two")


if __name__ == "__main__":
    main()
