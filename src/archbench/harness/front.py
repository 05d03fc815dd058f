"""``archbench run``: a friendly front of ``asv run`` on the current environment.

asv runs in a private folder; its files and the run's cells join the results when it is done (``asv_files.py``), or
when it is interrupted: then the cells that are finished count. A run whose folder is to be kept (``resume.py``) goes on
there instead. One run measures at a time on a machine; a second one waits.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from archbench.atomic import write_atomically
from archbench.cells import CELLS_DIR, Cell, Run, Started, Status, decode
from archbench.discovery import load_track
from archbench.hardware.asv_machine import write as write_asv_machine
from archbench.hardware.detect import default_device, detect, machine_name, place
from archbench.harness.asv_files import merge, prepare, publish, read
from archbench.harness.configuration import own_repository, results_dir
from archbench.harness.isolate import Died, run_isolated
from archbench.harness.measure import Refused, check_cell, preload
from archbench.harness.plan import Plan
from archbench.harness.processes import own_session
from archbench.harness.resume import claim, continued, release
from archbench.harness.session import CONFIGURATION, FORCED, RUN_FILE, versions
from archbench.nodes import Nodes

Progress = Callable[[int, int, Cell | None], None]

FILE = "cells.jsonl"  # a run's own, in its working folder
_ASV_ENDED = (0, 2)  # asv came to its end; 2: some benchmark failed
_SOCKET_PATH = 100  # bytes the path of a Unix socket may have on every system
_SOCKET_NAME = len("/asv-forkserver-12345678/socket")


@dataclass(frozen=True)
class Outcome:
    """What a run left: its file among the results and its cells."""

    path: Path
    run: Run
    cells: list[Cell]


class RunFailed(RuntimeError):
    """asv ended without a single cell; the message holds its last lines."""


class Interrupted(Exception):
    """The run was interrupted; ``kept`` is what joined the results of it, None where nothing did."""

    def __init__(self, kept: Outcome | None) -> None:
        super().__init__("interrupted")
        self.kept = kept


class NotMerged(OSError):
    """The results folder could not be written to; the message says where the cells are kept."""


@contextmanager
def measuring_alone(waiting: Callable[[], None]) -> Iterator[int]:
    """Hold this user's measuring lock of this host; ``waiting`` is called once when somebody else holds it.

    Yields the lock's file descriptor: the lock is held until the last process that inherits it has ended.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "archbench"
    folder.mkdir(parents=True, exist_ok=True)
    host = re.sub(r"[^\w.-]", "_", platform.node())  # several hosts may share a home
    with (folder / f"measuring-{host}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def run(
    wanted: Plan,
    configuration: Path,
    progress: Progress,
    waiting: Callable[[], None] = lambda: None,
    *,
    keep_in: Path | None = None,
    into: Path | None = None,
    forced: str = "",
) -> Outcome:
    """Measure the planned cells and merge them into the results: those of the configuration, or the folder ``into``.

    ``progress(done, total, cell)`` is called as cells finish. Raises RunFailed, NoRepository, ValueError, OSError.
    KeyboardInterrupt merges what is finished and becomes Interrupted. With ``keep_in`` the run works in that folder,
    goes on there where it was cut off, and merges nothing before it is whole. Every row says what was ``forced``.
    """
    host = detect()
    machine = Nodes.told().name(machine_name(host, default_device(host)))
    repository = own_repository(configuration)
    head = repository.head()
    results = into or results_dir(configuration)
    with measuring_alone(waiting) as lock, _working_folder(keep_in) as private:
        file = private / FILE
        continued(file, machine, head, repository.is_dirty(), versions(host))
        write_asv_machine(host, machine)
        # Before anything is measured: there must be a place for it.
        (results / machine / CELLS_DIR).mkdir(parents=True, exist_ok=True)
        prepare(private, results, machine, head, configuration)
        command = [sys.executable, "-m", "asv", "--config", str(private / CONFIGURATION), "run"]
        command += ["-E", f"existing:{sys.executable}", "--set-commit-hash", head, "--machine", machine]
        command += ["--launch-method", "forkserver", "--show-stderr"]
        for track in wanted.cases:
            command += ["--bench", wanted.regex(track)]
        log = private / "asv.log"
        code: int | None = None
        interrupted = False
        kept = None
        try:
            code = _follow(command, _environment(private, file, forced), log, lock, file, wanted.total, progress)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            # Also when something unforeseen ended it: what is measured is measured.
            if code is None:
                drop_unfinished(file)
            if keep_in is None or code in _ASV_ENDED:
                kept = _keep(private, file, results, machine)
        if interrupted:
            raise Interrupted(kept)
        if kept is None:
            text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            said = "asv measured nothing" if code in _ASV_ENDED or keep_in is None else f"asv ended early with {code}"
            raise RunFailed(f"{said}; its last lines:\n" + "\n".join(text.splitlines()[-25:]))
        if keep_in is not None:
            release(keep_in)
        return kept


@contextmanager
def _working_folder(keep_in: Path | None) -> Iterator[Path]:
    if keep_in is None:
        with tempfile.TemporaryDirectory(prefix="archbench-run-") as scratch:
            yield Path(scratch)
    else:
        claim(keep_in, keep_in / FILE)
        yield keep_in


def _environment(private: Path, file: Path, forced: str) -> dict[str, str]:
    found = os.environ | {RUN_FILE: str(file), FORCED: forced}
    found.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the order detection names cards in
    if path := found.get("PYTHONPATH"):  # asv drops it, and takes its own variable instead
        found.setdefault("ASV_PYTHONPATH", os.pathsep.join(map(os.path.abspath, path.split(os.pathsep))))
    if len(os.fsencode(private)) + _SOCKET_NAME <= _SOCKET_PATH:
        # What a killed process leaves in its temporary folder goes with ours; compiled kernels are worth keeping.
        kernels = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
        found.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kernels))
        found["TMPDIR"] = str(private)
    return found


def _follow(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    lock: int,
    file: Path,
    total: int,
    progress: Progress,
) -> int:
    seen = 0
    progress(0, total, None)
    with own_session(command, environment, log, keep=[lock]) as process:
        while True:
            code = process.poll()
            cells, _ = read(file)
            for cell in cells[seen:]:
                seen += 1
                progress(seen, total, cell)
            if code is not None:
                return code
            time.sleep(0.25)


def drop_unfinished(file: Path) -> None:
    """Take out of an interrupted run's file what would be read as a crash: marks without a cell, half a line."""
    if not file.exists():
        return
    lines = file.read_bytes().split(b"\n")[:-1]
    records = [decode(line) for line in lines]
    finished = {(r.track, r.case, r.contender) for r in records if isinstance(r, Cell)}
    kept = [
        line + b"\n"
        for line, record in zip(lines, records, strict=True)
        if not isinstance(record, Started) or (record.track, record.case, record.contender) in finished
    ]
    write_atomically(file, b"".join(kept))


def _keep(private: Path, file: Path, results: Path, machine: str) -> Outcome | None:
    """Move a run into the results. None where it measured nothing; raises NotMerged."""
    cells, header = read(file)
    if header is None or not cells:
        return None
    name = f"{header.run}.jsonl"
    path = results / machine / CELLS_DIR / name
    try:
        publish(file, path)
        merge(private / "results", results, machine)
    except OSError as error:
        rescue = Path(tempfile.mkdtemp(prefix="archbench-kept-"))
        (rescue / machine / CELLS_DIR).mkdir(parents=True)
        shutil.copyfile(file, rescue / machine / CELLS_DIR / name)
        raise NotMerged(
            f"cannot write to {results}: {error}; the {len(cells)} measured cells are kept: archbench merge {rescue}"
        ) from error
    return Outcome(path, header, cells)


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
            continue
        try:
            yield contender, msgspec.json.decode(answer, type=list[Verdict])
        except msgspec.DecodeError:
            yield contender, [Verdict("every case", "crashed", "its process answered with something else")]
