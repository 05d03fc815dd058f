"""The largest batch that each way of training fits into a given memory, found by trying.

A contender is one of the track ``parallel``: the same model, tokens and updates. A search starts fresh ranks under a
cap, makes two updates at one batch, and ends them, until it knows the largest batch that trains and that one step more
runs out of memory. Only running out of memory counts as "does not fit": whatever else goes wrong ends the cell with its
reason. A case has several searches, which share nothing; they stand where other tracks have training runs.

What is timed is the call of ``parallel`` at the case's smallest batch, without a cap, and its gate is that track's.

Source: Huang et al. 2018, arXiv:1811.06965 (GPipe: how large a model fits); Rajbhandari et al. 2019, arXiv:1910.02054
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archbench.models import parallel
from archbench.models.parallel import ParallelCase
from archbench.track import Device, Place, Timing, Track

MIB = 1 << 20


@dataclass(frozen=True)
class LargestBatchCase:
    """One training, one cap."""

    training: ParallelCase  # at the smallest batch: it is timed, and tried first
    cap_mib: int  # of each rank: on CPU all it writes to, libraries included; on a GPU what torch allocates
    step: int = 4  # sequences by which batches differ
    seeds: int = 3  # searches

    dtype = "fp32"
    threads = None

    def __post_init__(self) -> None:
        if self.cap_mib < 1 or self.seeds < 1:
            raise ValueError(f"a cap of {self.cap_mib} MiB, {self.seeds} searches: at least 1 of each")
        whole = (self.training.micro_batches, self.training.world)
        if self.step < 1 or any(self.step % parts for parts in whole) or self.training.batch % self.step:
            raise ValueError(
                f"a step of {self.step} sequences must be a multiple of {whole[0]} micro-batches and of {whole[1]} "
                f"ranks, and divide the smallest batch of {self.training.batch}"
            )

    @property
    def slug(self) -> str:
        return f"{self.training.slug}-cap{self.cap_mib}-step{self.step}"

    @property
    def axes(self) -> dict[str, str | int | float | bool]:
        found = {("smallest_batch" if name == "batch" else name): size for name, size in self.training.axes.items()}
        return found | {"cap_mib": self.cap_mib, "step": self.step, "searches": self.seeds}

    @property
    def cap_bytes(self) -> int:
        return self.cap_mib * MIB

    def flops(self) -> float:
        """Of the timed call."""
        return self.training.flops()

    def bytes_moved(self) -> None:
        """Not defined: what has to move depends on how the work is cut."""
        return None


def _make_inputs(case: LargestBatchCase, seed: int, device: Device) -> tuple[Any, ...]:
    return parallel.make_inputs(case.training, seed, device)


def _gate(case: LargestBatchCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    return parallel.gate(case.training, inputs, outputs)


def _skip(case: LargestBatchCase, place: Place) -> str | None:
    needed = case.training.world * case.cap_bytes
    if place.device == "cpu" and needed > place.memory_bytes:
        return f"{case.training.world} ranks of {case.cap_mib} MiB need {needed / MIB:.0f} MiB of memory"
    return parallel.skip(case.training, place)


def _batch_of_16(cap_mib: int, **changes: Any) -> LargestBatchCase:
    return LargestBatchCase(ParallelCase(**({"layers": 8, "dim": 256, "length": 128, "batch": 16} | changes)), cap_mib)


NOTES = """\
How many sequences can one update have? A **search** tries batches, each in fresh processes: two updates, because the
optimizer's state exists only after the first. It begins with the case's smallest batch and with twice as much; the line
through their highest memory says where the cap should be met; where that is far, it tries four times as much first.
Then it goes up or down by one step, two, four until the answer changes, and halves what is left down to one step. So
it ends with a batch that was tried and fits, and one a step larger that was tried and does not. Only running out of
memory counts as not fitting.

**The cap on a CPU** is `RLIMIT_DATA` of each rank: private memory it may write to, with that of the interpreter and of
PyTorch (`empty_bytes`: a rank with a model of almost no size). Ranks give every block of 128 KiB or more a mapping of
its own (`MALLOC_MMAP_THRESHOLD_`), so that what was freed is free. With glibc's default the heap keeps holes between
blocks, which cost a quarter of the batch and differ by half a step from one trial to the next. **On a GPU** the cap is
the share of the card's memory that PyTorch's allocator may take (`set_per_process_memory_fraction`), and running out
is the allocator's own error.

`cap_share_per_sequence` ranks: the share of the cap that one sequence takes when as many as possible are there, which
is one over `largest_batch`. `largest_micro_batch` is what of that goes through the model at once: the batch over the
micro-batches in a pipeline, over the ranks in data parallelism. `sequence_bytes` is the slope of memory over batch, on
the largest rank and for each sequence of the whole batch; `fixed_bytes` is where the line meets an empty batch:
libraries, parameters, gradients, optimizer state. Each rank also keeps the first values of its parameters, to begin
again with. `peak_bytes` is the memory of the largest rank at the smallest batch, the one that is timed."""

TRACK: Track[LargestBatchCase] = Track(
    name="largest_batch",
    question="Which way of training fits the largest batch into a given memory?",
    version="1",
    baseline="ddp",
    test_cases=(
        LargestBatchCase(ParallelCase(layers=2, dim=32, length=15, batch=4, micro_batches=2), cap_mib=1024, step=2),
    ),
    bench_cases=(
        _batch_of_16(1024),
        _batch_of_16(16384, layers=12, dim=768, length=512, batch=8, backend="nccl", heads=12, vocabulary=32000),
    ),
    make_inputs=_make_inputs,
    gate=_gate,
    skip=_skip,
    timing=Timing(max_blocks=10, budget_s=15.0, ratio_halfwidth=0.02, deadline_s=1800.0),
    item="token",
    items=lambda case: parallel.TRACK.items(case.training),
    protocol="training",
    quality="cap_share_per_sequence",
    on_request="50 minutes",
    notes=NOTES,
)
