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
