"""Contenders of ``int4_linear`` against one of them, and that one against the memory's rate, in turns in one process.

``archbench run`` pairs everything with ``dense``, so two contenders meet in two runs only. Here all of them take turns,
in random order, with a loop that reads as many bytes as the packed matrices have, in huge pages and with as many
threads: the rate of a shared machine's memory moves by a factor of two within minutes, and only a rate of the same
seconds says anything. Each answer passes the gate first. Run by hand, it is no part of the test suite:

    python tests/int4_pairs.py cpu_native_w4a8 ort_matmulnbits torch_int4pack torchao_int4 \\
        --case m1-k4096-n4096-g32-l16-w4a8
"""

from __future__ import annotations

import argparse
import ctypes
import math
import mmap
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from archbench.discovery import load_contender
from archbench.hardware import native
from archbench.hardware.ceilings import LINE_BYTES, STREAM
from archbench.hardware.cpu import usable_cores
from archbench.kernels.int4_linear import TRACK, Int4Case
from archbench.stats import hodges_lehmann

INPUTS = 4
PAUSE_S = 0.05  # threads of a pool that has just worked spin for a while and would take the next one's cores
WARM_S, SAMPLE_S = 0.02, 0.005  # of calls that are not timed, and of those that are, at least one each
READING = "reading alone"


def reading(case: Int4Case) -> Callable[[Any], Any]:
    """Reads as many bytes as the matrices of a case have, packed."""
    length = int(case.weight_bytes) // LINE_BYTES * LINE_BYTES
    memory = mmap.mmap(-1, length + LINE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    buffer = np.frombuffer(memory, np.uint8)
    buffer[:] = 1
    start = ctypes.c_void_p(-(-buffer.ctypes.data // LINE_BYTES) * LINE_BYTES)
    read, threads = native.load(STREAM).archbench_read, case.threads or usable_cores()
    return lambda _: (read(start, ctypes.c_int64(length), threads), buffer)


def prepared(case: Int4Case, name: str) -> Callable[[Any], Any]:
    """A contender's call, right at this case."""
    found = load_contender(TRACK.name, name)
    if found.entry is None:
        raise SystemExit(f"{name}: {found.status}: {found.reason}")
    call = found.entry.build(case)
    inputs = TRACK.make_inputs(case, 99, "cpu")
    print(f"{name}: relative error {TRACK.gate(case, inputs, call(*inputs)):.1e}", flush=True)
    return call


def repeated(call: Callable[[Any], Any], inputs: list[Any], least_s: float) -> float:
    """Seconds of a call, repeated for at least so long."""
    began, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - began < least_s:
        call(inputs[calls % INPUTS])
        calls += 1
    return (time.perf_counter() - began) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("contenders", nargs="+", help="the first is what the others are compared with")
    parser.add_argument("--case", required=True, type=TRACK.case)
    parser.add_argument("--turns", type=int, default=15)
    given = parser.parse_args()
    case: Int4Case = given.case
    torch.set_num_threads(case.threads or usable_cores())
    calls = {name: prepared(case, name) for name in given.contenders} | {READING: reading(case)}
    inputs = [TRACK.make_inputs(case, seed, "cpu")[0] for seed in range(INPUTS)]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(given.turns + 1):
        for name in random.sample(list(calls), len(calls)):
            time.sleep(PAUSE_S)
            repeated(calls[name], inputs, WARM_S)
            seconds[name].append(repeated(calls[name], inputs, SAMPLE_S))
    own, *others = given.contenders
    for name in (own, READING, *others):
        taken = seconds[name][1:]  # the first turn warms up
        ratio = hodges_lehmann([math.log(b / a) for a, b in zip(seconds[own][1:], taken, strict=True)]).exp()
        middle = sorted(taken)[len(taken) // 2]
        rate = f"{case.weight_bytes / middle / 1e9:.1f} GB/s of packed weights"
        interval = f"{ratio.value:.3f} (95 %: {ratio.lo:.3f} to {ratio.hi:.3f})"
        print(f"{name}: {middle / case.layers * 1e3:.3f} ms a matrix, {rate}; its time over that of {own}: {interval}")


if __name__ == "__main__":
    main()
