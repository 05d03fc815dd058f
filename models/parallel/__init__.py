"""One language model trained by several processes: how fast, in how much memory, with how much talk.

Every contender trains the same decoder-only transformer on the same tokens, from the same initial weights, with the
same optimizer. A call is ``steps`` optimizer steps from the start: tokens (S, B, L + 1) -> ``losses`` (S,), the mean
over the global batch before each update, and ``digest`` (P, 3) of how each parameter has changed since, in the
order of the model's names: sum, sum of squares, and a sum weighted by position. So an answer is right only if every
gradient was exchanged.

The call runs in ranks that PyTorch's own launcher started (``_launch/``): ``build(case)`` starts them, they keep their
model, and wait. Contender and baseline have ranks of their own; those that wait use no core. What a rank does is a
``Trainer`` (``_trainer.py``), which each contender's file defines; what contenders share is in ``_ways/``, and what is
looked at beside the clock in ``_measures/``.

Letters: S steps, B sequences of the global batch, M micro-batches, L tokens of a sequence, W ranks, P parameters.

Source: Li et al. 2020, arXiv:2006.15704 (DDP); Zhao et al. 2023, arXiv:2304.11277 (FSDP); Huang et al. 2018,
arXiv:1811.06965 (GPipe)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archbench.nodes import Nodes
from archbench.track import Device, Place, Timing, Track

BACKENDS: dict[str, Device] = {"gloo": "cpu", "nccl": "cuda"}


@dataclass(frozen=True)
class ParallelCase:
    """One model, one batch, one number of ranks."""

    layers: int
    dim: int
    length: int  # tokens of a sequence
    batch: int  # sequences of one update, over all ranks
    micro_batches: int = 4  # into which pipelines cut the batch
    world: int = 2  # ranks
    backend: str = "gloo"  # of BACKENDS
    steps: int = 2  # updates of one call
    heads: int = 4
    vocabulary: int = 256

    dtype = "fp32"
    threads = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend {self.backend!r}: allowed are {', '.join(BACKENDS)}")
        if self.batch % self.micro_batches or self.batch % self.world:
            raise ValueError(
                f"a batch of {self.batch} cannot be cut for {self.micro_batches} parts and {self.world} ranks"
            )
        if self.dim % self.heads or self.heads % self.world:
            raise ValueError(f"{self.heads} heads: must divide {self.dim} and be a multiple of {self.world} ranks")

    @property
    def slug(self) -> str:
        parts = [f"l{self.layers}", f"d{self.dim}", f"len{self.length}", f"b{self.batch}", f"m{self.micro_batches}"]
        return "-".join([*parts, f"w{self.world}", self.backend])

    @property
    def axes(self) -> dict[str, str | int | float | bool]:
        return {
            "layers": self.layers,
            "width": self.dim,
            "length": self.length,
            "batch": self.batch,
            "micro_batches": self.micro_batches,
            "ranks": self.world,
            "backend": self.backend,
        }

    @property
    def block_weights(self) -> int:
        """Weights of the matrices of one block."""
        return 12 * self.dim * self.dim

    def flops(self) -> float:
        """Of one call: two per weight and token forward, four backward; attention over the tokens before each."""
        tokens = self.steps * self.batch * self.length
        weights = self.layers * self.block_weights + self.vocabulary * self.dim
        attention = 2.0 * self.layers * self.dim * (self.length + 1)
        return tokens * (6.0 * weights + 3 * attention)

    def bytes_moved(self) -> None:
        """Not defined: what has to move depends on how the work is cut."""
        return None


def make_inputs(case: ParallelCase, seed: int, device: Device) -> tuple[Any, ...]:
    import numpy as np

    shape = (case.steps, case.batch, case.length + 1)
    return (np.random.default_rng(seed).integers(0, case.vocabulary, shape, dtype=np.int64),)


def gate(case: ParallelCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    from archbench.models.parallel._gate import judge

    return judge(case, inputs[0], outputs)


def skip(case: ParallelCase, place: Place) -> str | None:
    if BACKENDS[case.backend] != place.device:
        return f"{case.backend} is for {BACKENDS[case.backend].upper()}"
    if place.device == "cuda" or case.world <= place.cores * Nodes.told().count:
        return None
    return f"needs {case.world} cores, a rank each"


NOTES = """\
Every contender trains the same model on the same tokens from the same weights with the same AdamW, and a call is
right only if its losses and all parameters afterwards are those of one process in float64. A call is two updates;
ranks are processes of their own that PyTorch's launcher started once, and those of the side whose turn it is not wait
without using a core. `single` has all cores for one process. On two cores two ranks have a core each: what is
compared here is how the work is cut and how much has to be said, not how many cores there are.

`differs` are those that round more than float32 does; they have bounds of their own and are not ranked.

**Beside the clock** a cell's ranks are looked at in some more updates. All numbers are of the largest, slowest or
last rank, and lower is better. *Memory by kind* is counted by what tensors really occupy, each kind at its own
highest moment; `activations_bytes` is everything that lives only during an update: activations, gathered parameters,
buffers. `tensors_bytes` is what came together at one moment, `peak_bytes` the whole process with PyTorch's libraries.
`wire_bytes` is what a rank sends in an update, as the kernel counts it on its connections; gloo makes a
reduce-scatter as an all-reduce, so sharded training sends more on it than $3 \\frac{W-1}{W} P s$.
`exposed_communication_share` is the time of an update in which a communication is under way and the rank computes
nothing. What is left of the update is the rank's own time: `slowest_rank` is the largest of these in medians of the
others', 1 where all are alike, 10 where one has a tenth of a core. `bubble_share` is the idle time between a
pipeline's first pass and its last, beside $(K-1)/(M+K-1)$.

`cost_of_parallelism` is $W t / t_1$: worker seconds of an update in those of one worker that makes it alone with its
share of the machine, so 1 is perfect scaling, and scaling efficiency is one over it. `first_step_s` counts from the
start of the launcher to the end of the first update, imports included. `checkpoint_s` is until parameters and
optimizer state are synced to a disk; they are read again, and all bits must be back. `parameter_error` is the
distance of all parameters from the float64 reference after an update, relative to what the update changed."""

TRACK = Track(
    name="parallel",
    question="Which way of cutting up training is fastest at equal updates?",
    version="1",
    baseline="ddp",
    test_cases=(
        ParallelCase(layers=2, dim=32, length=15, batch=4, micro_batches=2),
        ParallelCase(layers=3, dim=64, length=33, batch=8, micro_batches=4, steps=3),
        ParallelCase(layers=2, dim=32, length=15, batch=4, micro_batches=2, world=4),
    ),
    bench_cases=(
        ParallelCase(layers=8, dim=256, length=128, batch=16),
        *(ParallelCase(layers=8, dim=256, length=128, batch=16, micro_batches=m) for m in (2, 8, 16)),
        ParallelCase(layers=4, dim=512, length=128, batch=16),
        ParallelCase(layers=8, dim=256, length=128, batch=16, world=4),
        ParallelCase(layers=12, dim=768, length=512, batch=32, backend="nccl", heads=12, vocabulary=32000),
    ),
    make_inputs=make_inputs,
    gate=gate,
    skip=skip,
    timing=Timing(max_blocks=20, budget_s=15.0, ratio_halfwidth=0.02, deadline_s=600.0),
    item="token",
    items=lambda case: case.steps * case.batch * case.length,
    protocol="instrumented",
    stacks={"Memory of a rank": ("parameters_bytes", "gradients_bytes", "optimizer_bytes", "activations_bytes")},
    on_request="about 90 minutes",
    notes=NOTES,
)
