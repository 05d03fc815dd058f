"""A run: its header, its file, and what all of its cells share.

``open_run`` is called once per ``asv run`` (from the suite's ``setup_cache``) and writes the header; the first cell of
a track adds the track's note, and every cell its line. The run's file is the only thing that the processes of a run
have in common.
"""

from __future__ import annotations

import os
import platform
import secrets
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from archbench import __version__
from archbench.cells import (
    CELLS_DIR,
    SCHEMA,
    Ceiling,
    Cell,
    ContenderNote,
    Record,
    Run,
    Started,
    TrackNote,
    decode,
    encode,
)
from archbench.discovery import load_track
from archbench.hardware.ceilings import ceilings
from archbench.hardware.detect import Host, default_device, detect, machine_name, place
from archbench.hardware.preflight import fact, preflight
from archbench.hardware.profiles import match
from archbench.harness.configuration import own_repository, results_dir
from archbench.harness.measure import Bench
from archbench.harness.repository import Repository
from archbench.harness.resume import continued
from archbench.harness.survey import describe
from archbench.names import is_safe_name
from archbench.nodes import Nodes
from archbench.track import Device, Place

PACKAGES = (
    "torch", "triton", "numpy", "onnxruntime", "asv", "asv_runner",
    "x-transformers", "transformers", "onnx", "liger-kernel", "flash-attn", "datasets", "llama_cpp_python",
)  # fmt: skip
DTYPES = ("fp64", "fp32", "tf32", "bf16", "fp16", "int8")  # those a device does not have are left out
CONFIGURATION = "asv.conf.json"
FORCED = "ARCHBENCH_FORCED"  # what stood in the way of this run, where somebody has looked
RUN_FILE = "ARCHBENCH_RUN_FILE"  # set by `archbench run`, so that it can follow the run's progress


class Session(msgspec.Struct, frozen=True):
    """What ``setup_cache`` hands to every cell of a run (pickled by asv)."""

    path: str
    run: Run
    device: Device
    cores: int
    memory_bytes: int
    cache_bytes: int
    derivations: str  # the folder of the tracks' derivations, a file <track>.md or what the track names
    opened_at: int = 0  # bytes of the run's file that are from before it was cut off
    forced: str = ""  # what stood in the way of this run and was overruled

    def bench(self) -> Bench:
        where = Place(self.device, self.cores, self.memory_bytes)
        return Bench(where, self.run.ceilings, self.cache_bytes, self.forced)


def versions(host: Host) -> dict[str, str]:
    """Versions that can change a number, by package."""
    found = {"python": platform.python_version(), "archbench": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if host.gpus:
        found["driver"] = host.gpus[0].driver
    return found


def environment_name() -> str:
    """asv's environment name when it has one of its own; never the path of an interpreter."""
    if os.environ.get("ASV_ENV_TYPE", "existing") != "existing":
        return os.environ.get("ASV_ENV_NAME", "")
    return existing_name()


def existing_name() -> str:
    """The name of the current environment in result files: ``existing-py3.11-torch2.13.0+cpu``."""
    name = f"existing-py{sys.version_info[0]}.{sys.version_info[1]}"
    try:
        return f"{name}-torch{version('torch')}"
    except PackageNotFoundError:
        return name


def find_configuration(start: Path) -> Path:
    """The nearest ``asv.conf.json`` at or above ``start``. Raises FileNotFoundError with what to do."""
    for folder in (start, *start.parents):
        if (folder / CONFIGURATION).is_file():
            return folder / CONFIGURATION
    raise FileNotFoundError(
        f"no {CONFIGURATION} in {start} or above: measuring needs a checkout of the repository; "
        "clone it and run archbench inside"
    )


def track_note(name: str, derivations: Path) -> TrackNote:
    """The track as a reader of old results needs it: question, cases, contenders with their one-line summaries."""
    track = load_track(name)
    derivation = derivations / f"{track.derivation or track.name}.md"
    notes: dict[str, ContenderNote] = {contender: found.note for contender, found in describe(name).items()}
    return TrackNote(
        track=track.name,
        question=track.question,
        version=track.version,
        baseline=track.baseline,
        cases={case.slug: dict(case.axes) for case in track.bench_cases},
        contenders=notes,
        quality=track.quality,
        item=track.item,
        stacks={title: list(parts) for title, parts in track.stacks.items()},
        notes=track.notes,
        derivation=derivation.read_text(encoding="utf-8") if derivation.is_file() else "",
    )


def measured_ceilings(host: Host, device: Device, *, refresh: bool = False) -> list[Ceiling]:
    """This machine's ceilings, measured once per boot, with the datasheet's figure beside each where one is known."""
    where = place(host, device)
    threads = sorted({1, where.cores})
    return ceilings(host, device, dtypes=DTYPES, threads=threads, refresh=refresh)


def open_run(configuration: Path) -> Session:
    """Write a run's header, or find it written; results go where ``configuration``, an ``asv.conf.json``, says.

    Raises ValueError for an unusable machine name, code from elsewhere or a file that was begun with something else,
    NoRepository, OSError for the file.
    """
    host = detect()
    device = default_device(host)
    nodes = Nodes.told()
    machine = nodes.name(machine_name(host, device))
    if not is_safe_name(machine):
        raise ValueError(f"{machine!r} cannot be a machine name: letters, digits and . _ + - only")
    # asv's own environments install the commit they name; the current environment has to be looked at.
    installed = "ASV_COMMIT" in os.environ
    repository = Repository.containing(configuration.parent) if installed else own_repository(configuration)
    commit = os.environ.get("ASV_COMMIT") or repository.head()
    dirty = not installed and repository.is_dirty()
    given = os.environ.get(RUN_FILE)
    run = continued(Path(given), machine, commit, dirty, versions(host)) if given else None
    begins = run is None
    if run is None:
        now = datetime.now(UTC)
        profile = match(host, device)
        run = Run(
            schema=SCHEMA,
            run=f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}",
            machine=machine,
            commit=commit,
            commit_date=repository.date(commit),
            dirty=dirty,
            started=now.isoformat(timespec="seconds"),
            device=device,
            host=host.facts() | nodes.facts(),
            ceilings=measured_ceilings(host, device),
            profile=profile.id if profile else None,
            versions=versions(host),
            environment=environment_name(),
        )
    path = Path(given) if given else results_dir(configuration) / machine / CELLS_DIR / f"{run.run}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    if begins:
        append(path, run)
    opened_at = path.stat().st_size
    where = place(host, device)
    return Session(
        path=str(path),
        run=run,
        device=device,
        cores=where.cores,
        memory_bytes=where.memory_bytes,
        cache_bytes=last_level_cache(host, device),
        derivations=str(configuration.parent / "docs" / "derivations"),
        opened_at=opened_at,
        forced=_overruled(path.parent),
    )


def _overruled(folder: Path) -> str:
    """What stands in the way of this run and is overruled; asv alone asks nobody, so it is looked at here."""
    seen = os.environ.get(FORCED)
    return fact(preflight(folders=[folder])) if seen is None else seen


def last_level_cache(host: Host, device: Device) -> int:
    """Bytes that inputs must exceed to come from memory: the L2 of the GPU, else every CPU cache of the last level."""
    if device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    return host.cpu.last_level_bytes


def append(path: Path, record: Record) -> None:
    """Add one line and see it to the disk: a power cut loses at most the cell in flight."""
    line = encode(record) + b"\n"
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def described(path: Path, track: str) -> bool:
    """Whether the run's file holds the track's note already."""
    return any(isinstance(record, TrackNote) and record.track == track for record in map(decode, _lines(path)))


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def begun(path: Path, track: str, case: str, contender: str, opened_at: int) -> tuple[int, int]:
    """How often the cell was begun: before the run was cut off (the first ``opened_at`` bytes), and since.

    Without a cell of it, each of them ended in nobody's hands.
    """
    content, mark = path.read_bytes(), (track, case, contender)
    counts = []
    for part in (content[:opened_at], content[opened_at:]):
        records = map(decode, part.splitlines())
        counts.append(sum(isinstance(r, Started) and (r.track, r.case, r.contender) == mark for r in records))
    return counts[0], counts[1]


def finished(path: Path, track: str, case: str, contender: str) -> Cell | None:
    """The cell of this run, if it is measured already: several asv metrics share one measurement."""
    for line in reversed(_lines(path)):
        record = decode(line)
        if isinstance(record, Cell) and (record.track, record.case, record.contender) == (track, case, contender):
            return record
    return None
