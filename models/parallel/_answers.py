"""What a rank can be asked: a question is a function that every rank runs at once, and rank 0's answer counts.

``train`` is the track's call. The others look at what it cannot tell while it is timed (``_measures/instruments.py``).

Letters: S steps, B sequences of the global batch, L tokens, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from archbench.models.parallel._launch.rank import Rank
from archbench.models.parallel._measures.checkpoint import saved
from archbench.models.parallel._measures.instruments import look, threads, trace


def train(rank: Rank, tokens: Any) -> dict[str, Any]:
    """Losses (S,) and digest (P, 3) of an int64 array (S, B, L + 1), from the initial weights on."""
    batches = torch.from_numpy(tokens).to(rank.world.device)
    rank.trainer.reset()
    losses = []
    for batch in batches:
        rank.begin_update()
        losses.append(rank.trainer.step(batch))
    return {"losses": torch.stack(losses).float().cpu().numpy(), "digest": rank.trainer.digest(rank.gathered)}


def parameters(rank: Rank) -> dict[str, Any]:
    """The whole model by name, as it is after the last update."""
    return rank.trainer.whole(rank.gathered)


def peaks(rank: Rank) -> list[int]:
    """The most bytes torch has held on each rank's GPU."""
    return rank.gathered(torch.cuda.max_memory_allocated(rank.world.device))


QUESTIONS: dict[str, Callable[..., Any]] = {
    "train": train,
    "parameters": parameters,
    "peaks": peaks,
    "look": look,
    "checkpoint": saved,
    "threads": threads,
    "trace": trace,
}
