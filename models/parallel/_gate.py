"""Whether ranks made the updates one process makes: the same losses, and the same parameters afterwards.

The reference trains the same model on the same tokens in float64. All errors of parameters are counted in learning
rates, the length of AdamW's step: an update changes a number by at most about one.

How far rounding can go. AdamW's first step is lr g / (|g| + eps), so an error of a gradient reaches the parameter as
at most lr error / eps. A float32 sum of summands below 1e-2 is off by some 1e-9, and eps is 1e-6: 1e-3 learning rates
where a gradient is nearly zero, less elsewhere, and half a last digit of a weight near 1 is 1e-4. Measured: 2e-3 in
the worst number, 2e-4 in the mean square. A gradient that was not exchanged, an update that one rank missed or weights
from before it are an error of about 1; forgotten weight decay is 0.1 on the norms' weights, whose errors add up.

With eight bits the sign itself is lost where a gradient is below its own rounding, and such a step is off by two. On
the wire that is where the ranks' gradients cancel to 2^-9, one number in some hundreds. In the compute every layer
rounds, a gradient is known to some percent, and a number in fifty or so turns; a key's bias, which adds the same to all
scores of a query and so has no gradient, moves at random. A parameter of 32 numbers with one of
them turned is off by 0.35 in the mean square and by up to 0.6 in a sum: the bounds allow three. That the exchange took
place shows in the losses after it, which such turns leave as they are.

Letters: S steps, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from archbench.checks import Array, Tolerance, Wrong, compare, flatten, to_float64
from archbench.models.parallel import BACKENDS, ParallelCase
from archbench.models.parallel._launch.ranks import look
from archbench.models.parallel._model import LEARNING_RATE, language_model, loss_of, optimizer_of, order
from archbench.models.parallel._ways.sharding import moments

PIECE = 4  # sequences of a batch that the reference works on at once


@dataclass(frozen=True)
class Bounds:
    """How far from the reference an answer may be; it can be a contender's gate. All but ``losses``: in learning rates
    and for each update of the call.
    """

    losses: float  # relative
    sums: float  # of a parameter's two sums in the digest, over the root of its size
    length: float  # of a parameter's root mean square change, in which a turned sign does not show
    number: float  # of any single number of a parameter
    spread: float  # root mean square over a parameter
    reason: str
    still: float = 0.0  # what moves by no more is not compared but number by number: its gradient is rounding alone

    def __call__(self, case: ParallelCase, inputs: tuple[Any, ...], outputs: Any) -> float:
        return judge(case, inputs[0], outputs, self)


EXACT = Bounds(5e-6, 0.005, 0.005, 0.02, 0.0025, "float32 sums in another order; AdamW's eps of 1e-6 keeps noise small")
ROUNDED = Bounds(2e-5, 0.5, 0.05, 2.1, 0.3, "where ranks' gradients cancel, bfloat16 on the wire loses the sign")
HALF = Bounds(2e-4, 0.75, 0.12, 2.1, 0.4, "bfloat16 loses the sign of small gradients", 0.01)


@dataclass(frozen=True)
class Reference:
    """What one process finds in float64. Parameters by name, in order."""

    losses: Array  # (S,)
    digest: Array  # (P, 3)
    final: dict[str, Array]


def judge(case: ParallelCase, tokens: Any, outputs: Any, bounds: Bounds = EXACT) -> float:
    """The larger relative error of losses and digest. Raises Wrong."""
    got = flatten(outputs)
    want = reference(case, tokens.tobytes())
    relative = Tolerance(bounds.losses, 0.0, bounds.reason)
    error = compare(to_float64(got["losses"], "losses"), want.losses, relative, "losses")
    found = to_float64(got["digest"], "digest")
    if found.shape != want.digest.shape:
        raise Wrong(f"digest has shape {found.shape}, expected {want.digest.shape}")
    sizes = np.array([final.size for final in want.final.values()])
    found_P3, want_P3 = _in_steps(found, sizes), _in_steps(want.digest, sizes)
    if not np.isfinite(found_P3).all():
        raise Wrong("digest holds numbers that are not finite")
    moves = want_P3[:, 1] >= bounds.still
    for part, name, bound in ((slice(0, None, 2), "sums", bounds.sums), (slice(1, 2), "lengths", bounds.length)):
        allowed = Tolerance(0.0, bound * case.steps, bounds.reason)
        what = f"digest, {name} in learning rates, "
        error = max(error, compare(found_P3[moves, part], want_P3[moves, part], allowed, what))
    return error


def _in_steps(digest: Array, sizes: Array) -> Array:
    """Sums over the root of the size, and the root of the mean square, in learning rates: (P, 3) without a unit."""
    sums, squares, weighted = digest.T
    scaled = np.stack((sums, np.sign(squares) * np.sqrt(np.abs(squares)), weighted), axis=1)
    return np.asarray(scaled / (LEARNING_RATE * np.sqrt(sizes)[:, None]))


def judge_parameters(case: ParallelCase, tokens: Any, parameters: dict[str, Any], bounds: Bounds = EXACT) -> float:
    """The error of all changes, relative to them, number by number. ``parameters``: arrays by name. Raises Wrong."""
    want = reference(case, tokens.tobytes()).final
    if parameters.keys() != want.keys():
        raise Wrong(f"parameters that only one side has: {', '.join(sorted(parameters.keys() ^ want.keys()))}")
    number = Tolerance(0.0, bounds.number * case.steps * LEARNING_RATE, bounds.reason)
    first = dict(language_model(case).named_parameters())
    errors = changes = 0.0
    for name, expected in want.items():
        got = to_float64(parameters[name], name)
        compare(got, expected, number, name)
        off = float(np.square(got - expected).sum())
        change = float(np.square(expected - to_float64(first[name])).sum())
        errors, changes = errors + off, changes + change
        spread, length = ((squares / expected.size) ** 0.5 / LEARNING_RATE for squares in (off, change))
        allowed = bounds.spread * case.steps
        if length >= bounds.still and spread > allowed:
            raise Wrong(f"{name} is off by {spread:.3g} learning rates in the mean square; allowed are {allowed:g}")
    return float((errors / changes) ** 0.5)


@lru_cache(maxsize=2)  # of whole models
def reference(case: ParallelCase, content: bytes) -> Reference:
    """One process in float64. ``content``: int64 tokens (S, B, L + 1).

    Takes seconds, in pieces of a batch, and looks at the ranks between them. Raises Failed where one has ended.
    """
    device = BACKENDS[case.backend]
    tokens = torch.from_numpy(np.frombuffer(content, np.int64).reshape(case.steps, case.batch, -1).copy()).to(device)
    model = language_model(case).double().to(device)
    named = sorted(model.named_parameters(), key=lambda item: order(item[0]))
    first = [parameter.detach().clone() for _, parameter in named]
    optimizer = optimizer_of(model)
    losses = []
    for batch in tokens:
        loss = torch.zeros((), dtype=torch.float64, device=device)
        for piece in batch.split(PIECE):
            look()
            part = loss_of(model(piece[:, :-1]), piece[:, 1:]) * (len(piece) / case.batch)
            part.backward()
            loss += part.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
    changes = [final.detach() - before for (_, final), before in zip(named, first, strict=True)]
    return Reference(
        torch.stack(losses).cpu().numpy(),
        torch.stack([moments(change) for change in changes]).cpu().numpy(),
        {name: final.detach().cpu().numpy() for name, final in named},
    )
