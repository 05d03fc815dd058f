"""Cells: what one measurement leaves behind, and the run files that hold them.

A *run file* is JSON lines, one per record: a ``Run`` header, a ``TrackNote`` for each track, then for each
cell a ``Started`` mark and a ``Cell``. A run file describes itself: the board needs nothing but these files.
It is appended and flushed while a run lasts and never changed afterwards, so merging results is copying files.
A ``Started`` mark without its ``Cell`` is a process that ended without a word: the reader shows it as crashed.

Files live at ``<results>/<machine>/cells/<run>.jsonl``. Units are SI: seconds, bytes, joules, operations per second.
No record ever holds NaN or Infinity: a missing number is null, and the status says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

SCHEMA = 1
CELLS_DIR = "cells"

Status = Literal["ok", "wrong", "unsupported", "oom", "timeout", "crashed", "throttled", "impossible"]
STATUSES: tuple[Status, ...] = get_args(Status)

Scalar = str | int | float | bool | None


class Metric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One number with its 95 % interval. ``unit`` is "s", "B", "J" or "ratio"; lower is better."""

    value: float
    unit: str
    ci: tuple[float, float] | None = None
    n: int = 1


class Duel(msgspec.Struct, frozen=True):
    """Seconds per call, block by block. ``control_s`` is the baseline again: the A/A control of the same blocks."""

    contender_s: list[float]
    baseline_s: list[float]
    control_s: list[float]
    contender_cpu_s: list[float] = []  # process CPU time of the same samples; empty on a GPU
    calls: tuple[int, int] = (1, 1)  # calls per sample: contender, baseline
    stopped: str = "interval"  # "interval" or "budget"


class Energy(msgspec.Struct, frozen=True):
    """Joules per call and how far to trust them: measured (a counter), derived (volts x amperes), modelled."""

    joules: float
    source: str
    trust: Literal["measured", "derived", "modelled"]


class Data(msgspec.Struct, frozen=True):
    """The data a cell was measured on. ``fingerprint`` is a hash of its content, hexadecimal."""

    name: str
    origin: str  # where it came from, for people: "CIFAR-10, 50,000 JPEG images of a folder"
    fingerprint: str


class Span(msgspec.Struct, frozen=True):
    """A piece of a timeline: what a lane did from when to when, in seconds from the timeline's begin."""

    lane: str  # who did it: "rank 0"
    what: str  # "forward", "backward"
    start_s: float
    stop_s: float
    part: int | None = None  # which of many, from 0: a micro-batch


class Cell(msgspec.Struct, frozen=True, tag_field="record", tag="cell", kw_only=True):
    """Track x case x contender in one run: a status, and numbers where the status is ``ok``.

    ``metrics`` of a paired cell: ``latency_s``, ``slowdown`` (paired ratio to the baseline), ``peak_bytes``,
    ``error``, ``energy_j``; a track adds its own. ``control`` is the A/A ratio of the same blocks.
    ``samples`` holds what a metric was computed from, where that is not the duel: a value for each seed of a training.
    """

    track: str
    case: str
    contender: str
    status: Status
    reason: str = ""
    baseline: str
    metrics: dict[str, Metric] = {}
    control: Metric | None = None
    limit_fraction: float | None = None  # physical floor over latency: 1.0 is the limit
    limit_kind: str | None = None  # "matrix" or "bandwidth": which ceiling sets the floor
    energy_trust: str | None = None
    duel: Duel | None = None
    series: dict[str, list[tuple[float, float]]] = {}  # curves: loss over step, memory over batch
    samples: dict[str, list[float | None]] = {}  # by metric, in the order of the seeds; None: not reached
    spans: list[Span] = []  # a timeline of one call: stages and micro-batches of a pipeline
    data: Data | None = None
    host: dict[str, Scalar] = {}  # load, steal, temperature, clocks, throttle bits while it was measured
    started: str = ""  # UTC, ISO 8601
    seconds: float = 0.0  # how long the cell took, set-up included


class Started(msgspec.Struct, frozen=True, tag_field="record", tag="started"):
    """Written before a cell is measured, so that a process that dies is seen."""

    track: str
    case: str
    contender: str
    baseline: str = ""


class ContenderNote(msgspec.Struct, frozen=True):
    """What the board says about a contender that may be gone by the time it is rendered."""

    summary: str = ""
    source: str = ""
    family: str = "own"
    differs: str | None = None


class TrackNote(msgspec.Struct, frozen=True, tag_field="record", tag="track", kw_only=True):
    """A track as it was when the run was made. ``cases`` maps slug to sizes by name."""

    track: str
    question: str
    version: str
    baseline: str
    cases: dict[str, dict[str, Scalar]]
    contenders: dict[str, ContenderNote]
    quality: str = ""  # the metric that ranks, where it is not the time: "test_error"
    item: str = "call"  # what times and energy are per: "token"
    stacks: dict[str, list[str]] = {}  # metrics that are parts of a whole, by its title
    notes: str = ""  # CommonMark with $formulas$
    derivation: str = ""  # the mathematics of the track, the same


class Ceiling(msgspec.Struct, frozen=True):
    """What the host was measured to reach.

    ``name`` is "copy", "read" (bytes per second) or "matrix" (operations per second, with ``dtype``).
    """

    name: str
    value: float
    unit: str
    threads: int | None = None
    dtype: str | None = None
    datasheet: float | None = None  # the profile's peak, where the machine matches a profile
    measured: str = ""  # UTC, ISO 8601


class Run(msgspec.Struct, frozen=True, tag_field="record", tag="run", kw_only=True):
    """Header of a run file."""

    schema: int
    run: str  # unique and sortable: 20260131T120000Z-1a2b3c
    machine: str
    commit: str
    dirty: bool
    started: str
    commit_date: str = ""
    device: str = "cpu"
    host: dict[str, Scalar] = {}  # detected facts, flat: cpu.model, cpu.isa, memory.bytes, gpu.0.name ...
    ceilings: list[Ceiling] = []
    profile: str | None = None  # id of the matching hardware profile
    versions: dict[str, str] = {}  # python, archbench, torch, triton, asv, driver
    environment: str = ""  # asv environment name


Record = Run | TrackNote | Started | Cell

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


def _refuse_nonfinite(value: Any, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} is {value}: records hold finite numbers or null")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_nonfinite(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _refuse_nonfinite(item, f"{path}[{i}]")


def encode(record: Record) -> bytes:
    """One JSON line without its newline. Raises ValueError on NaN or Infinity (JSON has neither)."""
    _refuse_nonfinite(msgspec.to_builtins(record), type(record).__name__)
    return _encoder.encode(record)


def decode(line: bytes) -> Record:
    """Read one line. Raises ``msgspec.DecodeError`` (its subclass ValidationError for a wrong shape)."""
    try:
        record: Record = _decoder.decode(line)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    return record
