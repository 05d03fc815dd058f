"""The physics gate: how far a time is from what this machine was measured to be able to do.

The floor of a call is the larger of its operations over the matrix rate and its bytes over the bandwidth.
The matrix rate of a case is the best measured for its dtype *or any wider one*: converting up is always
allowed, converting down loses the answer. The bandwidth floor only counts when the bytes of one pass over the inputs
exceed the last-level cache: smaller ones may be served from it, and no memory limit holds there. Where a pass reads
what a pass before it has read (a model's weights, token after token), at most one cache full of it is still there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from archbench.cells import Ceiling
from archbench.track import Case

IMPOSSIBLE_ABOVE = 1.05

_WIDER = {
    "int4": ("int4", "int8", "fp16", "bf16", "fp32", "fp64"),
    "int8": ("int8", "fp16", "bf16", "fp32", "fp64"),
    "fp16": ("fp16", "fp32", "fp64"),
    "bf16": ("bf16", "fp32", "fp64"),
    "tf32": ("tf32", "fp32", "fp64"),
    "fp32": ("fp32", "fp64"),
    "fp64": ("fp64",),
}


@dataclass(frozen=True)
class Floor:
    """Seconds no call of the case can beat, and which ceiling says so ("matrix" or "bandwidth")."""

    seconds: float
    kind: str


def best(ceilings: Sequence[Ceiling], name: str, threads: int | None, dtypes: Sequence[str | None]) -> float | None:
    """The highest ceiling of this name for any of the dtypes at this thread count (None: the most measured)."""
    matching = [c for c in ceilings if c.name == name and c.dtype in dtypes]
    if threads is not None and any(c.threads == threads for c in matching):
        matching = [c for c in matching if c.threads == threads]
    return max((c.value for c in matching), default=None)


def floor(case: Case, ceilings: Sequence[Ceiling], cache_bytes: int, rereads: int = 0) -> Floor | None:
    """The floor of one call of a case on a machine, or None where nothing is known.

    fp32 on CUDA may run on TF32 units, which are not part of ``fp32``: tracks that allow it carry dtype "tf32".
    """
    candidates: list[Floor] = []
    operations, moved = case.flops(), case.bytes_moved()
    # Wider units may be the faster ones; but where the dtype's own are unknown, wider ones are no limit to them.
    known = any(c.name == "matrix" and c.dtype == case.dtype for c in ceilings)
    rate = best(ceilings, "matrix", case.threads, _WIDER.get(case.dtype, (case.dtype,))) if known else None
    if operations and rate:
        candidates.append(Floor(operations / rate, "matrix"))
    bandwidth = max(
        (b for b in (best(ceilings, n, case.threads, (None,)) for n in ("read", "copy")) if b), default=None
    )
    if moved and bandwidth and moved / max(rereads, 1) > cache_bytes:
        candidates.append(Floor((moved - rereads * cache_bytes) / bandwidth, "bandwidth"))
    return max(candidates, key=lambda f: f.seconds, default=None)
