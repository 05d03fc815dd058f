"""One layer on one process with two threads, and with its experts on two ranks of one thread each: in turn.

A busy moment meets both.

    torchrun --nproc-per-node 2 tests/expert_parallel_pairs.py --blocks 10

Both halves of the ratio are the same arithmetic on the same two cores; what is above 1 is the exchange, the memory it
passes through, and waiting for the rank with more rows. With --backward gradients too.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, distributed

from archbench.kernels.moe_ffn import TRACK, MoeCase
from archbench.kernels.moe_ffn._expert_parallel import expert_parallel
from archbench.kernels.moe_ffn._layers import expert_by_expert
from archbench.kernels.moe_ffn._workload import workload
from archbench.models.parallel._launch.member import keep_freed_memory
from archbench.stats import hodges_lehmann

CASE = MoeCase(8, 256, 512, 1792, 8)
WARM_UP = 2
RANKS = 2


def own(inputs: tuple[Tensor, ...], rank: int) -> tuple[Tensor, ...]:
    """Of a whole layer's inputs what a rank holds."""
    shared = 1  # the router's place: all ranks hold it
    return tuple(part if place == shared else part.chunk(RANKS)[rank] for place, part in enumerate(inputs))


def passed_s(call: Callable[..., Any], inputs: tuple[Tensor, ...], threads: int) -> float:
    """Seconds from when all ranks begin until all are done."""
    torch.set_num_threads(threads)
    distributed.barrier()
    began = time.perf_counter()
    call(*inputs)
    distributed.barrier()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--backward", action="store_true")
    given = parser.parse_args()
    keep_freed_memory()
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    case = replace(CASE, backward=given.backward)
    whole = TRACK.make_inputs(case, 1, "cpu")
    ways: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], int]] = {
        "two ranks": (workload(case, partial(expert_parallel, case)), own(whole, rank), 1),
        "one process": (workload(case, partial(expert_by_expert, case)) if rank == 0 else lambda *_: None, whole, 2),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for block in range(WARM_UP + given.blocks):
        for name in sorted(ways, reverse=block % 2 == 1):
            times[name].append(passed_s(*ways[name]))
    kept = {name: of_one[WARM_UP:] for name, of_one in times.items()}
    ratio = hodges_lehmann([math.log(a / b) for a, b in zip(*kept.values(), strict=True)]).exp()
    if rank == 0:
        shown = ", ".join(f"{name} {median(of_one) * 1e3:.0f} ms" for name, of_one in kept.items())
        print(f"{case.slug}: {shown}, ratio {ratio.value:.3f} ({ratio.lo:.3f}-{ratio.hi:.3f})")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
