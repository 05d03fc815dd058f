"""Whether ranks made the updates one process makes: the same losses, and the same parameters afterwards.

The reference trains the same model on the same tokens in float64. Errors of float32 sums are 1e-6 of a loss. AdamW
divides a gradient by its own size, so what rounding changes in a small gradient reaches a parameter as a fraction of
the learning rate; eps of 1e-6 keeps that from gradients that are noise.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from archbench.checks import Tolerance, compare, flatten, to_float64
from archbench.models.parallel import ParallelCase
from archbench.models.parallel._model import language_model, loss_of, optimizer_of

LOSSES = Tolerance(2e-5, 0.0, "sums of float32 in another order, over a few updates")
DIGEST = Tolerance(2e-4, 2e-4, "AdamW turns the rounding of small gradients into parts of the learning rate of 3e-4")


def judge(case: ParallelCase, tokens: Any, outputs: Any) -> float:
    """The larger relative error of losses and digest. Raises Wrong."""
    got = flatten(outputs)
    losses, digest = reference(case, tokens.tobytes())
    error = compare(to_float64(got["losses"], "losses"), losses, LOSSES, "losses")
    return max(error, compare(to_float64(got["digest"], "digest"), digest, DIGEST, "digest"))


@lru_cache(maxsize=4)
def reference(case: ParallelCase, content: bytes) -> tuple[Any, Any]:
    """Losses (S,) and digest (P, 2), in float64 by one process."""
    tokens = torch.from_numpy(np.frombuffer(content, np.int64).reshape(case.steps, case.batch, -1).copy())
    model = language_model(case).double()
    optimizer = optimizer_of(model)
    losses = []
    for batch in tokens:
        loss = loss_of(model(batch[:, :-1]), batch[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    named = sorted(model.named_parameters(), key=lambda item: _order(item[0]))
    digest = [(float(p.detach().sum()), float(p.detach().square().sum())) for _, p in named]
    return np.array(losses), np.array(digest)


def _order(name: str) -> tuple[int, str]:
    part, _, rest = name.partition(".")
    return int(part), rest
