"""What share of the memory's rate a contender of ``edge_llm`` decodes at, the two taking turns in one process.

The rate of a shared machine's memory moves by a factor of two within minutes, so a ceiling that was measured before
says little: here each pass over the model stands beside a reading of as many bytes, in huge pages and with as many
threads.
Run by hand, it is no part of the test suite:

    python tests/edge_bandwidth.py cpu_native --case tinyllama_1b1_random-q4_0-tg32
"""

from __future__ import annotations

import argparse
import ctypes
import time
from statistics import median

from archbench.discovery import load_contender, load_track
from archbench.hardware import native
from archbench.hardware.ceilings import LINE_BYTES, STREAM, in_huge_pages
from archbench.hardware.cpu import usable_cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("contender")
    parser.add_argument("--case", required=True)
    parser.add_argument("--pairs", type=int, default=20)
    given = parser.parse_args()
    track = load_track("edge_llm")
    case = track.case(given.case)
    found = load_contender("edge_llm", given.contender)
    if found.entry is None:
        raise SystemExit(f"{given.contender}: {found.status}: {found.reason}")
    call = track.workload(case, found.entry.build(case))
    moved, threads = int(case.bytes_moved() / case.passes()), case.threads or usable_cores()
    buffer = in_huge_pages(moved // LINE_BYTES * LINE_BYTES + LINE_BYTES)
    start = ctypes.c_void_p(-(-buffer.ctypes.data // LINE_BYTES) * LINE_BYTES)
    read = native.load(STREAM).archbench_read
    shares = []
    for number in range(given.pairs + 1):
        inputs = track.make_inputs(case, number, "cpu")
        began = time.perf_counter()
        call(*inputs)
        decoded = time.perf_counter()
        for _ in range(case.passes()):
            read(start, ctypes.c_int64(moved // LINE_BYTES * LINE_BYTES), threads)
        done = time.perf_counter()
        if number:  # the first warms up
            rates = [case.bytes_moved() / s / 1e9 for s in (decoded - began, done - decoded)]
            shares.append(rates[0] / rates[1])
            print(f"pair {number}: {rates[0]:.1f} GB/s of {rates[1]:.1f}: {shares[-1]:.0%}", flush=True)
    ordered = sorted(shares)
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    print(
        f"{given.contender} at {case.slug}: {median(shares):.0%} of the memory's rate (quartiles {low:.0%}, {high:.0%})"
    )


if __name__ == "__main__":
    main()
