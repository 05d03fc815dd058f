"""``archbench run``: a friendly front of ``asv run`` on the current environment.

asv runs in a private folder and what it leaves is merged into the results when it is done: asv writes its files in
place, forgets benchmarks a partial run did not select, and names the environment after the interpreter's path.
One run measures at a time on a machine; a second one waits.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from archbench.cells import CELLS_DIR, Cell, Run, Status, decode
from archbench.discovery import UnknownName, load_track, select
from archbench.hardware.asv_machine import write as write_asv_machine
from archbench.hardware.detect import default_device, detect, machine_name, place
from archbench.harness.isolate import Died, run_isolated
from archbench.harness.measure import Refused, check_cell, preload
from archbench.harness.repository import Repository
from archbench.harness.session import CONFIGURATION, RUN_FILE, existing_name, results_dir
from archbench.names import unknown
from archbench.track import Place

Progress = Callable[[int, int, Cell | None], None]


@dataclass(frozen=True)
class Plan:
    """The cells a run will ask for: cases and contenders by track."""

    cases: dict[str, tuple[str, ...]]
    contenders: dict[str, tuple[str, ...]]

    @property
    def total(self) -> int:
        return sum(len(self.cases[track]) * len(self.contenders[track]) for track in self.cases)

    def regex(self, track: str) -> str:
        """What asv's ``--bench`` must match: this track's cells and no other."""
        cases = "|".join(map(re.escape, self.cases[track]))
        contenders = "|".join(map(re.escape, self.contenders[track]))
        return rf"^{re.escape(track)}\.\w+\.track_\w+\('(?:{cases})', '(?:{contenders})'\)$"


@dataclass(frozen=True)
class Outcome:
    """What a run left: its file among the results and its cells."""

    path: Path
    run: Run
    cells: list[Cell]
    asv_output: str


class RunFailed(RuntimeError):
    """asv ended without a single cell; the message holds its last lines."""


def plan(targets: tuple[str, ...], cases: tuple[str, ...], where: Place) -> Plan:
    """Which cells ``TRACK[/CONTENDER]`` targets and ``--case`` slugs mean on this place. Raises UnknownName."""
    contenders = select(targets)
    chosen: dict[str, tuple[str, ...]] = {}
    known: set[str] = set()
    for name in contenders:
        track = load_track(name)
        slugs = {case.slug: case for case in track.bench_cases}
        known |= slugs.keys()
        wanted = [slug for slug in (cases or tuple(slugs)) if slug in slugs]
        here = tuple(slug for slug in wanted if track.skip(slugs[slug], where) is None)
        if cases and wanted and not here:
            raise UnknownName(f"case {wanted[0]!r} is not measured here: {track.skip(slugs[wanted[0]], where)}")
        if here:
            chosen[name] = here
    for slug in cases:
        if slug not in known:
            raise UnknownName(unknown("case", slug, known))
    return Plan(chosen, {name: contenders[name] for name in chosen})


@contextmanager
def measuring_alone(waiting: Callable[[], None]) -> Iterator[None]:
    """Hold this user's measuring lock; ``waiting`` is called once when somebody else holds it."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "archbench"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "measuring.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(wanted: Plan, configuration: Path, progress: Progress, waiting: Callable[[], None] = lambda: None) -> Outcome:
    """Measure the planned cells and merge them into the results.

    ``progress(done, total, cell)`` is called as cells finish. Raises RunFailed, NoRepository, OSError.
    An interrupt merges what is finished and goes on as KeyboardInterrupt.
    """
    host = detect()
    machine = machine_name(host, default_device(host))
    repository = Repository.containing(configuration.parent)
    head = repository.head()
    results = results_dir(configuration)
    with measuring_alone(waiting), tempfile.TemporaryDirectory(prefix="archbench-run-") as scratch:
        private = Path(scratch)
        write_asv_machine(host, machine)
        _prepare(private, results, machine, head, configuration)
        file = private / "cells.jsonl"
        command = [sys.executable, "-m", "asv", "--config", str(private / CONFIGURATION), "run"]
        command += ["-E", f"existing:{sys.executable}", "--set-commit-hash", head, "--machine", machine]
        command += ["--launch-method", "forkserver", "--show-stderr"]
        for track in wanted.cases:
            command += ["--bench", wanted.regex(track)]
        environment = os.environ | {RUN_FILE: str(file)}
        environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the order detection names cards in
        log = private / "asv.log"
        try:
            _follow(command, environment, log, file, wanted.total, progress)
        finally:
            cells, header = read(file)
            text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            target = results / machine / CELLS_DIR
            if header is not None and cells:
                _merge(private / "results", results, machine)
                target.mkdir(parents=True, exist_ok=True)
                _publish(file, target / f"{header.run}.jsonl")
        if header is None or not cells:
            raise RunFailed("asv measured nothing; its last lines:\n" + "\n".join(text.splitlines()[-25:]))
        return Outcome(target / f"{header.run}.jsonl", header, cells, text)


def read(file: Path) -> tuple[list[Cell], Run | None]:
    """Cells and header of a run file so far; a line still being written is left for later."""
    cells: list[Cell] = []
    header: Run | None = None
    if not file.exists():
        return cells, header
    for line in file.read_bytes().split(b"\n")[:-1]:
        record = decode(line)
        if isinstance(record, Cell):
            cells.append(record)
        elif isinstance(record, Run):
            header = record
    return cells, header


def _follow(
    command: Sequence[str], environment: dict[str, str], log: Path, file: Path, total: int, progress: Progress
) -> None:
    seen = 0
    progress(0, total, None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            while True:
                ended = process.poll() is not None
                cells, _ = read(file)
                for cell in cells[seen:]:
                    seen += 1
                    progress(seen, total, cell)
                if ended:
                    return
                time.sleep(0.25)
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _asv_environment_name() -> str:
    """How asv names ``existing:<this interpreter>``: with the interpreter's path, which must not be published."""
    return f"existing-py{os.path.abspath(shutil.which(sys.executable) or sys.executable).replace(os.path.sep, '_')}"


def _prepare(private: Path, results: Path, machine: str, head: str, configuration: Path) -> None:
    """A private asv configuration whose results hold this commit's earlier numbers, under the name asv looks for."""
    settings = json.loads(configuration.read_text(encoding="utf-8"))
    here = configuration.parent
    settings["repo"] = str(here / settings["repo"])
    settings["benchmark_dir"] = str(here / settings["benchmark_dir"])
    settings["results_dir"] = str(private / "results")
    settings["env_dir"] = str(private / "env")
    settings["html_dir"] = str(private / "html")
    (private / CONFIGURATION).write_text(json.dumps(settings), encoding="utf-8")
    (private / "results" / machine).mkdir(parents=True)
    earlier = results / machine / f"{head[:8]}-{existing_name()}.json"
    if earlier.is_file():
        found = _read_json(earlier)
        if found is not None:
            found["env_name"] = _asv_environment_name()
            name = f"{head[:8]}-{_asv_environment_name()}.json"
            (private / "results" / machine / name).write_text(json.dumps(found), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file holds none: asv's files may be cut short."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None
    return found if isinstance(found, dict) else None


def _merge(source: Path, results: Path, machine: str) -> None:
    """Move asv's files into the results: ours under a public name, ``benchmarks.json`` as the union of both."""
    folder = results / machine
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((source / machine).glob("*.json")):
        found = _read_json(path)
        if found is None:
            continue
        name = path.name
        if found.get("env_name") == _asv_environment_name():
            found["env_name"] = existing_name()
            found["python"] = f"{sys.version_info[0]}.{sys.version_info[1]}"
            if isinstance(found.get("params"), dict):
                found["params"]["python"] = found["python"]
            name = f"{found['commit_hash'][:8]}-{existing_name()}.json"
        _replace(folder / name, found)
    known = _read_json(results / "benchmarks.json") or {}
    _replace(results / "benchmarks.json", known | (_read_json(source / "benchmarks.json") or {}))


def _replace(path: Path, content: dict[str, Any]) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps(content, indent=1), encoding="utf-8")
    _publish(staged, path)


def _publish(staged: Path, path: Path) -> None:
    """Put a finished file in place in one step, on the disk before it has its name."""
    if staged.parent != path.parent:  # another file system, most likely
        near = path.with_name(f".{path.name}.{os.getpid()}")
        shutil.copyfile(staged, near)
        staged = near
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(staged, path)


@dataclass(frozen=True)
class Verdict:
    """How a contender did at one test case, untimed."""

    case: str
    status: Status
    reason: str


def checks(track_name: str, contenders: Sequence[str]) -> Iterator[tuple[str, list[Verdict]]]:
    """Every contender at every test case of a track, one child process a contender."""
    host = detect()
    where = place(host, default_device(host))
    track = load_track(track_name)
    preload(track)  # once, before the children are forked
    for contender in contenders:

        def ask(contender: str = contender) -> bytes:
            found = []
            for case in track.test_cases:
                try:
                    check_cell(track, case, contender, where)
                    found.append(Verdict(case.slug, "ok", ""))
                except Refused as refused:
                    found.append(Verdict(case.slug, refused.status, refused.reason))
            return msgspec.json.encode(found)

        answer = run_isolated(ask, track.timing.deadline_s)
        if isinstance(answer, Died):
            yield contender, [Verdict("every case", answer.status, answer.reason)]
        else:
            yield contender, msgspec.json.decode(answer, type=list[Verdict])
