"""Repeat the searches of the track largest_batch and say whether they end within one step of each other.

    python tests/largest_batch_searches.py ddp fsdp --searches 3

A line for each search, a verdict for each contender; exits with 1 where two searches of one differ by more than a step.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from archbench.models.largest_batch import MIB, TRACK
from archbench.models.largest_batch._journal import RUN_FILE


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("contenders", nargs="+")
    parser.add_argument("--searches", type=int, default=3)
    parser.add_argument("--case", default=TRACK.bench_cases[0].slug)
    told = parser.parse_args()
    os.environ[RUN_FILE] = f"searches of process {os.getpid()}"  # nothing of an earlier call is known
    case, apart = TRACK.case(told.case), False
    for name in told.contenders:
        asked = importlib.import_module(f"archbench.models.largest_batch.{name}").CONTENDER.build(case)
        ends = []
        for seed in range(told.searches):
            found = asked.run(seed, "cpu" if case.training.backend == "gloo" else "cuda")
            m = found.metrics
            ends.append(m["largest_batch"])
            points = ", ".join(f"{batch} {peak / MIB:.0f}" for batch, peak in found.curves["peak_bytes_over_batch"])
            print(
                f"{name} search {seed}: {m['largest_batch']:.0f} sequences in {m['trials']:.0f} trials, "
                f"{m['search_s']:.0f} s; empty {m['empty_bytes'] / MIB:.0f} MiB; MiB by batch: {points}",
                flush=True,
            )
        asked.training.ranks.close()
        spread = max(ends) - min(ends)
        apart |= spread > case.step
        print(f"{name}: {told.searches} searches within {spread:.0f} sequences, a step is {case.step}", flush=True)
    return apart


if __name__ == "__main__":
    sys.exit(main())
