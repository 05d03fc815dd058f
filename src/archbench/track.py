"""Track, Case, Contender: what is asked, at which sizes, and who answers.

A *track* is one question with its cases, inputs, gate and baseline. It is a package in one of the rooms
(``kernels/attention``, ``models/switch_lm``); its ``__init__.py`` defines ``TRACK`` and imports no torch,
so that a host without torch can still list and explain it.

A *contender* is one module of that package: the file name is its id, and the file defines ``CONTENDER``.
Modules whose name starts with an underscore are private to the track. There is no registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args

from archbench.cells import Data

Device = Literal["cpu", "cuda"]
Call = Callable[..., Any]


class Unavailable(Exception):
    """A contender cannot run here. The message is what the reader sees: "needs CUDA", "no bf16 in torch.fft"."""


class Failed(Exception):
    """A call that ended without an answer, in a way the contender's own process knows better than ours.

    Work in other processes ends where no exception of ours is raised: killed, out of memory, waited for in vain.
    """

    def __init__(self, status: Literal["crashed", "oom", "timeout"], reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Case(Protocol):
    """One workload: a frozen dataclass of sizes, dtype and thread count, with a readable slug."""

    @property
    def slug(self) -> str:
        """Name with fixed abbreviations, for example ``b1-h8-len1024-d64-causal-bf16-fwd``; unique in its track."""

    @property
    def axes(self) -> Mapping[str, str | int | float | bool]:
        """The sizes by full name, for facets and charts on the board."""

    @property
    def dtype(self) -> str:
        """``fp64``, ``fp32``, ``bf16``, ``fp16``, ``int8`` or ``int4``: selects the matrix-rate ceiling."""

    @property
    def threads(self) -> int | None:
        """CPU threads a call may use; None is every core of the machine."""

    def flops(self) -> float | None:
        """Floating-point operations of one call that no correct implementation can avoid, or None."""

    def bytes_moved(self) -> float | None:
        """Bytes one call must move at least (each input read once, each output written once), or None."""


CaseT = TypeVar("CaseT", bound=Case)
CaseT_contra = TypeVar("CaseT_contra", bound=Case, contravariant=True)


class Gate(Protocol[CaseT_contra]):
    """The correctness check of a track; see ``archbench.checks`` for ready-made ones."""

    def __call__(self, case: CaseT_contra, inputs: tuple[Any, ...], outputs: Any) -> float:
        """Return the relative error of ``outputs``, or raise ``archbench.checks.Wrong`` with what and where."""


class Judging(Protocol):
    """A call made by ``Track.workload`` that judges answers itself, in the gate's place.

    For tracks where the right answer depends on the contender: a quantised network is right when it answers, where it
    is deployed, as it did where it was made. Only what the workload made is asked: a contender that the workload
    passes on as it is does not judge itself.
    """

    def __call__(self, *inputs: Any) -> Any:
        """The timed call."""

    def judge(self, inputs: tuple[Any, ...], outputs: Any) -> float:
        """The relative error of ``outputs``, or raises ``archbench.checks.Wrong`` with what and where."""


@dataclass(frozen=True)
class Place:
    """Where a cell is measured."""

    device: Device
    cores: int  # CPU cores this process may use
    memory_bytes: int  # of the device: GPU memory for cuda, host memory for cpu


@dataclass(frozen=True)
class Timing:
    """How long the paired clock looks at one cell."""

    min_blocks: int = 10  # never fewer: seven is asv's own least for a significant difference
    max_blocks: int = 200
    ratio_halfwidth: float = 0.01  # stop once the 95 % interval of the ratio is within this share of it
    budget_s: float = 1.5  # or once this much time is spent and min_blocks are done
    min_sample_s: float = 0.002  # a sample repeats the call until it lasts at least this long
    deadline_s: float = 300.0  # the whole cell, set-up included; then it is a timeout
    cuda_graph: bool = False  # replay calls from a CUDA graph: for launch-bound work


@dataclass(frozen=True, kw_only=True)
class Contender(Generic[CaseT]):
    """One implementation.

    ``build(case)`` does the untimed set-up and returns the call that is timed. It raises ``Unavailable``
    where this case or host is not supported. A file whose imports fail for want of a package is reported
    as "needs the package X"; nothing has to be declared for that.
    """

    build: Callable[[CaseT], Call]
    device: Device | None = None  # the only device it runs on; None: any
    family: str = "own"  # "own", "torch", "compiler", "peer": facet on the board
    differs: str | None = None  # set where it computes another function: timed in its own column, never ranked
    gate: Gate[CaseT] | None = None  # its own gate, where it computes another function

    def __post_init__(self) -> None:
        if not callable(self.build):
            raise TypeError(f"build is a {type(self.build).__name__}: it must be a function of the case")
        if type(self.family) is not str:
            raise TypeError(f"family is a {type(self.family).__name__}: it must be a word for the board's facet")
        if self.device is not None and self.device not in get_args(Device):
            raise ValueError(f"device {self.device!r}: allowed are {', '.join(get_args(Device))}, or None for any")
        if self.differs is not None and (type(self.differs) is not str or not self.differs):
            raise TypeError(f"differs is {self.differs!r}: say in words what it computes instead, or leave it out")
        if self.gate is not None and not callable(self.gate):
            raise TypeError(f"gate is a {type(self.gate).__name__}: it must be a function, see archbench.checks")
        if self.gate is not None and self.differs is None:
            raise ValueError(
                "a gate of its own needs differs='what it computes instead': "
                "who answers the track's question passes the track's gate, so leave gate out"
            )


def _call_itself(case: Any, call: Call) -> Call:
    return call


def _everywhere(case: Any, place: Place) -> str | None:
    return None


def _one(case: Any) -> int:
    return 1


def _none(case: Any) -> int:
    return 0


def _longest_axes(case: Any) -> None:
    return None


def _no_data(case: Any) -> Data | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Track(Generic[CaseT]):
    """One question. ``version`` is the series: raise it when old and new numbers no longer compare."""

    name: str
    question: str
    version: str
    baseline: str  # id of the contender every other one is paired with
    test_cases: tuple[CaseT, ...]  # small and odd sizes: every commit, on CPU
    bench_cases: tuple[CaseT, ...]  # what is measured
    make_inputs: Callable[[CaseT, int, Device], tuple[Any, ...]]  # (case, seed, device) -> fresh inputs
    gate: Gate[CaseT]
    workload: Callable[[CaseT, Call], Call] = _call_itself  # wraps the contender's call: adds the backward pass, say
    skip: Callable[[CaseT, Place], str | None] = _everywhere  # why a case is not measured at a place, or None
    timing: Timing = field(default_factory=Timing)
    item: str = "call"  # what latency_s and energy_j are per: "token"
    items: Callable[[CaseT], int] = _one  # how many of them one call of a case is
    rereads: Callable[[CaseT], int] = _none  # how often one call reads all its bytes though a pass before it did
    rolls: Callable[[CaseT], Sequence[int | None] | None] = _longest_axes  # of each input, see harness.pool
    data: Callable[[CaseT], Data | None] = _no_data  # what a case is measured on, where that is not drawn from the seed
    protocol: str = "duel"  # a measuring protocol of archbench.harness.protocols
    quality: str = ""  # a metric of its training runs (a fraction, lower is better) that ranks in the time's place
    stacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # metrics that add up, by title
    on_request: str = ""  # "25 minutes": a track that takes so long is measured where it is named, never else
    preload: tuple[str, ...] = ()  # modules asv's fork server imports once instead of every cell again
    notes: str = ""  # method notes for the track's page: plain paragraphs
    derivation: str = ""  # its page of docs/derivations, where that has another name than the track

    def case(self, slug: str) -> CaseT:
        """The case of this slug. Raises KeyError when the track has none."""
        for case in self.bench_cases + self.test_cases:
            if case.slug == slug:
                return case
        raise KeyError(slug)
