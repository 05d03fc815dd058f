"""Results of other tools as run files: a module per format, each with ``read(content) -> Measured``.

An imported run is a run file like any other: the board shows it beside the rest and never ranks it, because nothing
in it is paired. The same input gives the same file, name included, so importing twice changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from archbench.atomic import write_atomically
from archbench.cells import CELLS_DIR, SCHEMA, Record, Run, encode
from archbench.reports.imports import llama_bench, published, pytest_benchmark
from archbench.reports.imports.measured import ENVIRONMENT, Measured
from archbench.reports.load import Unreadable, read_bytes
from archbench.reports.meaning import check_header, check_record, date

FORMATS: dict[str, Callable[[bytes], Measured]] = {
    "llama-bench": llama_bench.read,
    "pytest-benchmark": pytest_benchmark.read,
    "published": published.read,
}


def records(format: str, content: bytes, machine: str) -> list[Record]:
    """The records of one file. Raises ValueError where it is not of the format or holds impossible numbers."""
    try:
        found = FORMATS[format](content)
    except (Unreadable, msgspec.ValidationError) as error:
        raise ValueError(f"not a file of {format}: {error}") from error
    body: list[Record] = [found.track, *found.cells]
    digest = hashlib.blake2b(b"\n".join(map(encode, body)) + machine.encode(), digest_size=3).hexdigest()
    run = Run(
        schema=SCHEMA,
        run=f"{date(found.started, 'started'):%Y%m%dT%H%M%SZ}-{digest}",
        machine=machine,
        commit=found.commit,
        dirty=found.dirty,
        started=found.started,
        commit_date=found.commit_date,
        device=found.device,
        host=found.host,
        versions=found.versions,
        environment=f"{ENVIRONMENT}{format}",
    )
    check_header(run)
    for record in body:
        check_record(record)
    return [run, *body]


def import_file(format: str, path: Path, machine: str, into: Path) -> Path:
    """Write one file's run file below ``into`` and return its path. Raises ValueError, OSError."""
    try:
        found = records(format, read_bytes(path), machine)
    except (Unreadable, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    run = found[0]
    assert isinstance(run, Run)
    target = into / machine / CELLS_DIR / f"{run.run}.jsonl"
    write_atomically(target, b"".join(encode(record) + b"\n" for record in found))
    return target
