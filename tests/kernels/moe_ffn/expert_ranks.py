"""Ranks that answer layers whose experts are spread over them: started by test_expert_parallel.

    python tests/kernels/moe_ffn/expert_ranks.py FOLDER RANKS

FOLDER holds ``plan``: named pairs of a case and how many of its groups each of the first ranks has. What a rank
answers, and the bytes that it sent to others forward and in all, goes to FOLDER/RANK. The ranks are forked from one
process, which has imported torch for all of them and has not computed anything: threads would not come along.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from archbench.kernels.moe_ffn import TRACK, MoeCase
from archbench.kernels.moe_ffn._expert_parallel import expert_parallel
from archbench.kernels.moe_ffn._workload import workload

SENT = [0]  # bytes, to other ranks
EXCHANGE = distributed.all_to_all_single


def counted(received: Tensor, rows: Tensor, received_W: Any, sent_W: Any, group: Any) -> None:
    elsewhere = sum(sent_W) - sent_W[distributed.get_rank(group)]
    SENT[0] += elsewhere * rows[:1].numel() * rows.element_size() if len(rows) else 0
    EXCHANGE(received, rows, received_W, sent_W, group=group)


def own(inputs: Sequence[Tensor], spread: Sequence[int], rank: int) -> tuple[Tensor, ...]:
    """Of a whole layer's inputs what a rank holds."""
    x, router, w_in, w_out, uniform, dy = inputs
    groups, experts = slice(sum(spread[:rank]), sum(spread[: rank + 1])), len(w_in) // len(spread)
    here = slice(rank * experts, (rank + 1) * experts)
    return x[groups], router, w_in[here], w_out[here], uniform[groups], dy[groups]


def answer(case: MoeCase, spread: Sequence[int], rank: int, group: Any) -> Any:
    given = own(TRACK.make_inputs(case, 1, "cpu"), spread, rank)
    call = partial(expert_parallel, case, group=group)
    SENT[0] = 0
    try:
        forward = workload(replace(case, backward=False), call)(*given[:-1])
        sent = SENT[0]
        whole = workload(case, call)(*given)
    except ValueError as error:
        return str(error)
    return forward, whole, sent, SENT[0] - sent


def serve(folder: Path, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    distributed.all_to_all_single = counted
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    groups = {size: distributed.new_group(list(range(size))) for size in range(1, ranks + 1)}
    answers = {}
    for name, (case, spread) in torch.load(folder / "plan", weights_only=False).items():
        if rank < len(spread):
            answers[name] = answer(case, spread, rank, groups[len(spread)])
    torch.save(answers, folder / str(rank))
    distributed.destroy_process_group()


def main() -> None:
    folder, ranks = Path(sys.argv[1]), int(sys.argv[2])
    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=serve, args=(folder, rank, ranks)) for rank in range(ranks)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    sys.exit(int(any(process.exitcode for process in started)))


if __name__ == "__main__":
    main()
