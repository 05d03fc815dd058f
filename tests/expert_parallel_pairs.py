"""One layer on one process with two threads, and with its experts on two ranks of one thread each: in turn.

A busy moment meets both. Three processes: two share the experts, the third holds them all, and whoever's turn it is not
waits without using a core.

    torchrun --nproc-per-node 3 tests/expert_parallel_pairs.py --blocks 10

Both halves of the ratio are the same arithmetic on the same two cores: it is what the exchange, the memory it passes
through and waiting for the rank with more rows cost, less what two threads lose on waiting for each other. With
--backward gradients too.
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

from archbench.kernels.moe_ffn import TRACK, MoeCase, sorted_grouped
from archbench.kernels.moe_ffn._expert_parallel import expert_parallel
from archbench.kernels.moe_ffn._workload import workload
from archbench.models.parallel._launch.member import keep_freed_memory
from archbench.stats import hodges_lehmann

CASE = MoeCase(8, 256, 512, 1792, 8)
WARM_UP = 2
RANKS = 2  # that share the experts; the process after them has all, and as many threads


def own(inputs: tuple[Tensor, ...], rank: int) -> tuple[Tensor, ...]:
    """Of a whole layer's inputs what a rank holds."""
    shared = 1  # the router's place: all ranks hold it
    return tuple(part if place == shared else part.chunk(RANKS)[rank] for place, part in enumerate(inputs))


def passed_s(call: Callable[[], Any] | None) -> float:
    """Seconds from when all processes begin until all are done; None waits for the others."""
    distributed.barrier()
    began = time.perf_counter()
    if call is not None:
        call()
    distributed.barrier()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--backward", action="store_true")
    given = parser.parse_args()
    keep_freed_memory()
    distributed.init_process_group("gloo")
    if distributed.get_world_size() != RANKS + 1:
        raise SystemExit(
            f"{RANKS + 1} processes, not {distributed.get_world_size()}: torchrun --nproc-per-node {RANKS + 1}"
        )
    rank, sharing = distributed.get_rank(), distributed.new_group(list(range(RANKS)))
    case = replace(CASE, backward=given.backward)
    inputs = TRACK.make_inputs(case, 1, "cpu")
    if rank < RANKS:
        torch.set_num_threads(1)
        layer, name, inputs = partial(expert_parallel, case, group=sharing), "two ranks", own(inputs, rank)
    else:
        torch.set_num_threads(RANKS)
        layer, name = sorted_grouped.CONTENDER.build(case), "one process"
    call = workload(case, layer)
    times: dict[str, list[float]] = {"two ranks": [], "one process": []}
    for block in range(WARM_UP + given.blocks):
        for turn in sorted(times, reverse=block % 2 == 1):
            times[turn].append(passed_s(partial(call, *inputs) if turn == name else None))
    kept = {turn: of_one[WARM_UP:] for turn, of_one in times.items()}
    ratio = hodges_lehmann([math.log(a / b) for a, b in zip(*kept.values(), strict=True)]).exp()
    if rank == 0:
        shown = ", ".join(f"{turn} {median(of_one) * 1e3:.0f} ms" for turn, of_one in kept.items())
        print(f"{case.slug}: {shown}, ratio {ratio.value:.3f} ({ratio.lo:.3f}-{ratio.hi:.3f})")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
