"""Results folders for tests: run files written with the real encoder."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec

from archbench.cells import (
    SCHEMA,
    Ceiling,
    Cell,
    ContenderNote,
    Data,
    Duel,
    Metric,
    Record,
    Run,
    Scalar,
    Span,
    Started,
    TrackNote,
    encode,
)
from archbench.training import over_seeds

MACHINE = "amd-epyc-zen4-2c"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


_duels = itertools.count()


def run(
    machine: str = MACHINE, identity: str = "20260102T030405Z-aaaaaa", commit: str = COMMIT, **changes: object
) -> Run:
    fields: dict[str, object] = {
        "schema": SCHEMA,
        "run": identity,
        "machine": machine,
        "commit": commit,
        "commit_date": "2026-01-01T00:00:00+00:00",
        "dirty": False,
        "started": "2026-01-02T03:04:05+00:00",
        "host": {"cpu.model": "EPYC", "cpu.cores": 2},
        "ceilings": [Ceiling("matrix", 4e11, "op/s", threads=2, dtype="fp32", datasheet=8e11)],
        "versions": {"torch": "2.13.0", "python": "3.11"},
        "environment": "existing-py3.11",
    }
    return Run(**(fields | changes))


def note(track: str = "attention", lengths: Sequence[int] = (128, 512, 1024), **contenders: ContenderNote) -> TrackNote:
    return TrackNote(
        track=track,
        question="Which is fastest?",
        version="1",
        baseline="base",
        cases={f"len{n}": {"length": n, "dtype": "fp32"} for n in lengths},
        contenders={"base": ContenderNote("The baseline.", "", "torch"), **contenders},
        notes="First paragraph.\n\nSecond.",
    )


def samples(slowdown: float, half: float) -> Duel:
    """Twelve blocks that give exactly the numbers of ``cell``, in an order of their own: no two duels are the same."""
    contender = [0.001 * slowdown * (0.9, 1.1)[i < 6] for i in range(12)]
    opponent = [x / slowdown / math.exp(half * (-1) ** i) for i, x in enumerate(contender)]
    apart = [(math.log(1.001) + 0.002 * (-1) ** (i // 2)) / 2 for i in range(12)]
    blocks = [(c, b / math.exp(a), b * math.exp(a)) for c, b, a in zip(contender, opponent, apart, strict=True)]
    random.Random(next(_duels)).shuffle(blocks)
    return Duel(*(list(column) for column in zip(*blocks, strict=True)))


def cell(contender: str, slowdown: float = 1.0, case: str = "len128", half: float = 0.01, **changes: object) -> Cell:
    """An ok cell whose slowdown has an interval of +-``half`` (relative)."""
    ends = (slowdown * math.exp(-half), slowdown * math.exp(half))
    fields: dict[str, object] = {
        "track": "attention",
        "case": case,
        "contender": contender,
        "baseline": "base",
        "status": "ok",
        "metrics": {
            "latency_s": Metric(0.001 * slowdown, "s", (0.0009 * slowdown, 0.0011 * slowdown), 12),
            "slowdown": Metric(slowdown, "ratio", ends, 12),
            "peak_bytes": Metric(4096.0, "B"),
            "error": Metric(1e-7, "ratio"),
        },
        "control": Metric(1.001, "ratio", (1.001 * math.exp(-0.002), 1.001 * math.exp(0.002)), 12),
        "limit_fraction": min(0.4 / slowdown, 1.0),
        "limit_kind": "matrix",
        "duel": samples(slowdown, half) if not changes.keys() & {"metrics", "control"} else None,
        "host": {"load1": 0.5},
        "started": "2026-01-02T03:05:00+00:00",
    }
    if changes.get("status", "ok") != "ok":
        for key in ("metrics", "control", "limit_fraction", "limit_kind", "duel"):
            del fields[key]
    return Cell(**(fields | changes))


def write(folder: Path, records: Sequence[Record], machine: str | None = None) -> Path:
    """A run file (header first) in its place, with the machine file asv wants beside it."""
    header = records[0]
    assert isinstance(header, Run)
    home = folder / (machine or header.machine)
    (home / "cells").mkdir(parents=True, exist_ok=True)
    (home / "machine.json").write_text(json.dumps({"machine": header.machine, "version": 1, "cpu": "EPYC"}))
    path = home / "cells" / f"{header.run}.jsonl"
    path.write_bytes(b"".join(encode(record) + b"\n" for record in records))
    return path


def small(folder: Path) -> Path:
    """A small results folder: two contenders and the baseline over three cases, one unsupported, one different."""
    records: list[Record] = [run(), note(fast=ContenderNote("Quick."), other=ContenderNote("Other.", differs="adds"))]
    for length in (128, 512, 1024):
        records += [
            cell("base", 1.0, f"len{length}"),
            cell("fast", 0.5, f"len{length}"),
            cell("slow", 2.0 + length / 1000, f"len{length}"),
            cell("other", 0.1, f"len{length}"),
            cell("gpu_only", case=f"len{length}", status="unsupported", reason="needs CUDA"),
        ]
    write(folder, [*records, Started("attention", "len128", "died", "base")])
    return folder


def rich(folder: Path) -> Path:
    """Something for every page kind: two machines, two commits, curves, energy, a derivation, a foreign tree."""
    first = run(identity="20251202T030405Z-bbbbbb", commit="f" * 40, commit_date="2025-12-01T00:00:00+00:00",
                started="2025-12-02T03:04:05+00:00", versions={"torch": "2.12.0", "python": "3.11"})  # fmt: skip
    write(folder, [first, note(), cell("base"), cell("fast", 1.5), cell("slow", 1.2)])
    small(folder)
    gpu = run("nvidia-h100-sxm", identity="20260103T030405Z-cccccc", device="cuda", host={"gpu.0.name": "H100"})
    training = {"loss": [(float(i), 2.0 / (1 + i)) for i in range(1, 30)]}
    energy = {"energy_j": Metric(0.5, "J"), "drop_share": Metric(0.03, "ratio", (0.02, 0.04), 5)}
    described = note(
        fast=ContenderNote("Quick.", "A paper of 2024, arXiv:2401.00001", "peer"),
        other=ContenderNote("Other.", differs="adds"),
    )
    described = msgspec.structs.replace(
        described, derivation="# Softmax\n\nWith $S = QK^T$:\n\n$$ P = \\frac{e^{S}}{\\sum e^{S}} \\tag{1} $$\n"
    )
    write(
        folder,
        [
            gpu,
            described,
            *(cell("base", 1.0, f"len{n}", series=training) for n in (128, 512, 1024)),
            *(cell("fast", 0.4, f"len{n}", series=training) for n in (128, 512, 1024)),
            *(cell("slow", 3.0, f"len{n}", metrics=cell("slow", 3.0).metrics | energy) for n in (128, 512, 1024)),
            cell("other", 0.1, "len128"),
        ],
    )
    home = folder / "somewhere-else"
    home.mkdir()
    (home / "machine.json").write_text(json.dumps({"machine": "somewhere-else", "version": 1, "cpu": "old"}))
    for i in range(8):
        data = {
            "version": 2, "commit_hash": f"{i:040x}", "env_name": "virtualenv-py3.11",
            "date": 1700000000000 + i * 10**9, "params": {"machine": "somewhere-else"},
            "result_columns": ["result", "params"],
            "results": {"suite.time_thing": [[0.5 + (i > 4), 0.25], [["1", "2"]]], "suite.track_size": [[7.0 + i], []]},
        }  # fmt: skip
        (home / f"{i:08x}-virtualenv-py3.11.json").write_text(json.dumps(data))
    return folder


def asv_file(**changes: object) -> str:
    """One of asv's result files with one value."""
    data = {"version": 2, "commit_hash": "abcd", "env_name": "e", "date": 1, "params": {"machine": MACHINE}}
    return json.dumps(data | {"result_columns": ["result", "params"], "results": {"a.track_x": [[1.0], []]}} | changes)


def trained(
    contender: str,
    errors: Sequence[float],
    slowdown: float = 1.0,
    case: str = "text-len128",
    fingerprint: str = "abcdef0123456789",
    **changes: object,
) -> Cell:
    """An ok cell of the training track ``mixing``, an error for each seed."""
    timed = cell(contender, slowdown, case)
    steps = [(float(i), 0.9 * math.exp(-i / 5) + errors[0]) for i in range(10)]
    fields: dict[str, object] = {
        "track": "mixing",
        "metrics": timed.metrics | {"test_error": over_seeds("test_error", errors)},
        "samples": {"test_error": list(errors)},
        "series": {"test_error": steps, "loss": steps},
        "data": Data("text", "made for this test", fingerprint),
        "limit_fraction": None,
        "limit_kind": None,
    }
    return msgspec.structs.replace(timed, **(fields | changes))


def study(folder: Path) -> Path:
    """A training track: ``quick`` errs more and steps faster, ``lost`` cannot be told from the baseline."""
    told = msgspec.structs.replace(
        note("mixing"),
        quality="test_error",
        cases={f"text-len{n}": {"length": n, "data": "text"} for n in (128, 512)},
    )
    base = [0.30, 0.32, 0.31, 0.29]
    write(
        folder,
        [
            run(),
            told,
            trained("base", base),
            trained("quick", [x * 1.2 + 0.001 * i for i, x in enumerate(base)], 0.6),
            trained("lost", [x * (1 + 0.02 * (-1) ** i) for i, x in enumerate(base)], 1.1),
            cell("gpu_only", case="text-len128", track="mixing", status="unsupported", reason="needs CUDA"),
            trained("base", [0.2, 0.21, 0.22], case="text-len512"),
            trained("quick", [0.25, 0.26, 0.27], 0.6, case="text-len512"),
            trained("lost", [0.201, 0.208, 0.223], 1.1, case="text-len512"),
        ],
    )
    return folder


def pipeline_spans(ranks: int, parts: int, *, one_f_one_b: bool = False, forward: float = 0.004) -> list[Span]:
    """The timeline of a pipeline by its rule: all forward, then all back, or one of each as soon as there is one."""
    backward = 2 * forward
    done: dict[tuple[int, str, int], float] = {}
    spans: list[Span] = []
    queues = []
    for rank in range(ranks):
        warm = min(parts, ranks - rank) if one_f_one_b else parts
        todo = [("forward", i) for i in range(warm)]
        for i in range(parts):
            todo += [("backward", i), *([("forward", i + warm)] if i + warm < parts else [])]
        queues.append(todo)
    clock = [0.0] * ranks
    while any(queues):
        for rank, todo in enumerate(queues):
            if todo:
                what, part = todo[0]
                after = rank - 1 if what == "forward" else rank + 1
                ready = done.get((after, what, part)) if 0 <= after < ranks else 0.0
                if ready is not None:
                    start = max(clock[rank], ready)
                    clock[rank] = start + (forward if what == "forward" else backward)
                    done[rank, what, part] = clock[rank]
                    spans.append(Span(f"rank {rank}", what, start, clock[rank], part))
                    del todo[0]
    stop = max(clock)
    return [
        *spans,
        *(Span(f"rank {rank}", "wait", clock[rank], stop) for rank in range(ranks) if clock[rank] < stop),
        *(Span(f"rank {rank}", "update", stop, stop + forward / 2) for rank in range(ranks)),
    ]


def instrumented(contender: str, slowdown: float, parts: int, scale: float = 1.0, **changes: object) -> Cell:
    """An ok cell of the track ``training`` with numbers of its own, as its instruments would give them."""
    mib = float(1 << 20)
    sizes = {"parameters": 25.4, "gradients": 25.4, "optimizer": 50.8, "activations": 61.0}
    numbers = {f"{name}_bytes": size * mib * (scale if name != "activations" else 1.2) for name, size in sizes.items()}
    numbers |= {f"{name}_formula_bytes": 25.3 * k * mib * scale for name, k in (("parameters", 1), ("optimizer", 2))}
    numbers |= {
        "gradients_formula_bytes": 25.3 * mib * scale,
        "wire_bytes": 25.6 * mib,
        "wire_formula_bytes": 25.3 * mib,
    }
    numbers |= {"exposed_communication_share": 0.0312, "slowest_rank": 1.04, "first_step_s": 3.4, "checkpoint_s": 0.31}
    numbers |= {"cost_of_parallelism": 1.21 * slowdown, "parameter_error": 3.1e-7, "updates": 12.0}
    spans: list[Span] = []
    if contender.startswith(("gpipe", "one")):
        spans = pipeline_spans(2, parts, one_f_one_b=contender == "one_f_one_b")
        numbers |= {"bubble_share": 1 / (parts + 1) + 0.021, "bubble_formula": 1 / (parts + 1)}
    timed = cell(contender, slowdown, f"l8-d256-len128-b16-m{parts}-w2-gloo")
    found = {name: over_seeds(name, [value]) for name, value in numbers.items()}
    return msgspec.structs.replace(
        timed, track="training", metrics=timed.metrics | found, spans=spans, limit_fraction=0.31, **changes
    )


def instruments(folder: Path) -> Path:
    """A track whose cells carry a dozen metrics, timelines, stacks and a curve of memory over batch."""
    parts = (2, 4, 8, 16)
    names = {"base": 1.0, "single": 1.0, "fsdp": 0.52, "gpipe": 0.5, "one_f_one_b": 0.5, "tensor_parallel": 0.51}
    cases: dict[str, dict[str, Scalar]] = {
        f"l8-d256-len128-b16-m{m}-w2-gloo": {"layers": 8, "micro_batches": m, "batch": 16} for m in parts
    }
    told = TrackNote(
        track="training",
        question="Which way of cutting up training is fastest at equal updates?",
        version="1",
        baseline="base",
        cases=cases,
        contenders={name: ContenderNote(f"{name} in one line.") for name in names},
        item="token",
        stacks={
            "memory of the largest rank": [
                f"{kind}_bytes" for kind in ("parameters", "gradients", "optimizer", "activations")
            ]
        },
    )
    curve = {"peak_bytes_over_batch": [(float(b), (40.0 + 7 * b) * (1 << 20)) for b in (1, 2, 4, 8, 16, 24, 28, 30)]}
    cells = [
        instrumented(name, 1.0 + i / 9 + m / 80, m, scale, **({"series": curve} if m == 2 and i < 3 else {}))
        for m in parts
        for i, (name, scale) in enumerate(names.items())
    ]
    write(folder, [run(), told, *cells])
    return folder
