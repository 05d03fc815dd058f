"""Ways of training in pairs: all in the same two ranks, update by update in random order.

A busy moment meets both.

    torchrun --nproc-per-node 2 tests/parallel_pairs.py gpipe gpipe_torch --micro-batches 2 4 8 16 --blocks 10

For each number of micro-batches: the ratio of times to the first, with its interval, and the bubble beside its formula.
"""

from __future__ import annotations

import argparse
import importlib
import math
import random
import time
from statistics import median
from typing import Any

import torch
from torch import Tensor, distributed

from archbench.models.parallel import ParallelCase, make_inputs
from archbench.models.parallel._launch.member import keep_freed_memory
from archbench.models.parallel._trainer import Trainer, World
from archbench.models.parallel._ways.schedule import bubble, bubble_formula
from archbench.stats import hodges_lehmann

WARM_UP = 2


def update(trainer: Trainer, batch: Tensor, bubbles: list[float]) -> float:
    """Seconds of one; its bubble, where it is a pipeline's, is added."""
    distributed.barrier()
    began = time.perf_counter()
    trainer.step(batch)
    distributed.barrier()
    passed_s = time.perf_counter() - began
    marks: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(marks, trainer.marks())
    if all(marks):
        bubbles.append(bubble(marks))
    return passed_s


def compare(names: list[str], case: ParallelCase, blocks: int) -> list[str]:
    """A line for each."""
    world = World(case, distributed.get_rank(), distributed.get_world_size(), torch.device("cpu"))
    trainers = {name: importlib.import_module(f"archbench.models.parallel.{name}").trainer(world) for name in names}
    batch = torch.from_numpy(make_inputs(case, 1, "cpu")[0])[0]
    times: dict[str, list[float]] = {name: [] for name in names}
    bubbles: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(1)  # the same on every rank
    for trainer in trainers.values():
        for _ in range(WARM_UP):
            trainer.step(batch)
    for _ in range(blocks):
        for name in order.sample(names, len(names)):
            times[name].append(update(trainers[name], batch, bubbles[name]))
    found = []
    for name in names:
        logs = [math.log(own / first) for own, first in zip(times[name], times[names[0]], strict=True)]
        ratio = hodges_lehmann(logs).exp()
        line = f"{name}: {median(times[name]) * 1e3:.0f} ms, {ratio.value:.3f} ({ratio.lo:.3f}-{ratio.hi:.3f})"
        found.append(line + (f", bubble {median(bubbles[name]):.3f}" if bubbles[name] else ""))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contenders", nargs="+")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[4])
    parser.add_argument("--blocks", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    distributed.init_process_group("gloo")
    for count in given.micro_batches:
        case = ParallelCase(layers=8, dim=256, length=128, batch=16, micro_batches=count)
        lines = compare(given.contenders, case, given.blocks)
        if distributed.get_rank() == 0:
            print(
                f"{case.slug}, bubble by formula {bubble_formula(case.world, count):.3f}",
                *lines,
                sep="\n  ",
                flush=True,
            )
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
