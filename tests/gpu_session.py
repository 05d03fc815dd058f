"""Everything a host with a GPU is asked for, in one go: gate, measurements, board, and what to carry home.

``gpu_session.py OUT [TRACK or TRACK/CONTENDER ...]`` checks every contender at every test case on the GPU, measures all
bench cases, renders the board, and leaves it all in the folder OUT. It needs no network. Each step is noted in
OUT/summary.json when it ends, and a step that fails does not stop the next: a session may be the only one on its host.
docs/gpu-host.md says how to get there. A script, not a test: ``nox -s gpu -- OUT`` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from archbench.atomic import write_atomically
from archbench.discovery import UnknownName, select
from archbench.hardware.detect import Host, detect, machine_name, why_not_cuda
from archbench.harness.configuration import own_repository, results_dir
from archbench.harness.front import Verdict, checks
from archbench.harness.session import CONFIGURATION, measured_ceilings, versions

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("flash-attn", "liger-kernel", "onnx", "transformers", "x-transformers")  # beside what a run file records
FINE = ("ok", "unsupported")


class Summary:
    """OUT/summary.json: the machine, its versions and ceilings, and how each step ended. Written at every change."""

    def __init__(self, out: Path, host: Host, targets: Sequence[str]) -> None:
        repository = own_repository(ROOT / CONFIGURATION)
        self._path = out / "summary.json"
        self.found: dict[str, Any] = {
            "machine": machine_name(host, "cuda"),
            "device": host.gpus[0].name,
            "driver": host.gpus[0].driver,
            "commit": repository.head(),
            "dirty": repository.is_dirty(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "targets": list(targets),
            "host": host.facts(),
            "versions": versions(host) | _installed(PEERS),
            "ceilings": [],
            "steps": {},
        }
        self._write()

    def _write(self) -> None:
        write_atomically(self._path, (json.dumps(self.found, indent=1, allow_nan=False) + "\n").encode())

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step: what it raises is its outcome, and the next step begins."""
        print(f"\n== {name}", flush=True)
        began, outcome = time.monotonic(), "ok"
        try:
            yield
        except (Failed, OSError, ValueError, RuntimeError) as error:
            outcome = f"failed: {error}"
        except KeyboardInterrupt:
            outcome = "interrupted"
        print(f"{name}: {outcome}", flush=True)
        self.found["steps"][name] = {"outcome": outcome, "seconds": round(time.monotonic() - began, 1)}
        self._write()

    @property
    def failures(self) -> list[str]:
        """Steps that did not end well."""
        return [name for name, step in self.found["steps"].items() if step["outcome"] != "ok"]


class Failed(Exception):
    """A step did not do what it was for; the message says what is missing."""


def _installed(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def gate(targets: Sequence[str], out: Path) -> None:
    """Every contender at every test case: a line for each, all verdicts in OUT/gate.json. Raises Failed."""
    verdicts: dict[str, list[Verdict]] = {}
    for track, names in select(tuple(targets)).items():
        for name, found in checks(track, names):
            verdicts[f"{track}/{name}"] = found
            print(row(f"{track}/{name}", found), flush=True)
            write_atomically(out / "gate.json", msgspec.json.format(msgspec.json.encode(verdicts), indent=1))
    wrong = sum(verdict.status not in FINE for found in verdicts.values() for verdict in found)
    if wrong:
        raise Failed(f"{wrong} check(s), see gate.json")


def row(name: str, verdicts: Sequence[Verdict]) -> str:
    """A line of the table: how many are right, how many are unsupported and why, and each that is neither."""
    refused = [verdict for verdict in verdicts if verdict.status == "unsupported"]
    right = sum(verdict.status == "ok" for verdict in verdicts)
    line = f"{name:36} right {right:3} of {len(verdicts)}"
    line += f"   unsupported {len(refused):3} ({refused[0].reason})" if refused else ""
    other = [f"\n    {v.case}: {v.status}: {v.reason}" for v in verdicts if v.status not in FINE]
    return line + "".join(other)


def archbench(*arguments: str, log: Path) -> None:
    """Run a verb of the command line; its output goes to the screen and the log. Raises Failed."""
    command = [sys.executable, "-m", "archbench", *arguments]
    with (
        log.open("w") as file,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        try:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                file.write(line)
        except KeyboardInterrupt:
            process.wait()  # it was interrupted, too, and is keeping what is measured
            raise
    if process.returncode:
        raise Failed(f"archbench {arguments[0]} ended with {process.returncode}, see {log.name}")


def carry(machine: str, out: Path) -> None:
    """Copy this machine's results into OUT/results, as ``archbench merge`` takes them. Raises Failed."""
    results = results_dir(ROOT / CONFIGURATION)
    if not (results / machine).is_dir():
        raise Failed(f"{machine} has no results")
    shutil.copytree(results / machine, out / "results" / machine, dirs_exist_ok=True)
    shutil.copy2(results / "benchmarks.json", out / "results")


def arguments(given: Sequence[str]) -> tuple[Path, list[str]]:
    """The output folder and the targets. Ends the program with a sentence where they cannot be used."""
    parser = argparse.ArgumentParser(prog="gpu_session", description="Check and measure on a GPU; results go into OUT.")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new or empty folder")
    parser.add_argument("targets", metavar="TARGET", nargs="*", help="TRACK or TRACK/CONTENDER; everything if left out")
    parsed = parser.parse_args(given)
    try:
        select(tuple(parsed.targets))
    except UnknownName as error:
        parser.error(str(error))
    if parsed.out.exists() and (not parsed.out.is_dir() or any(parsed.out.iterdir())):
        parser.error(f"{parsed.out} is not an empty folder: a session's results do not mix with others")
    return parsed.out.resolve(), parsed.targets


def main(given: Sequence[str], look: Callable[[], Host] = detect) -> int:
    """The whole session; ``look`` finds out what the host is. Returns the exit code."""
    out, targets = arguments(given)
    os.environ["ARCHBENCH_DEVICE"] = "cuda"  # for the verbs, too
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    host = look()
    obstacle = why_not_cuda(host)
    if obstacle:
        print(f"gpu_session: there is no GPU to measure on: {obstacle}", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    summary = Summary(out, host, targets)
    with summary.step("ceilings"):
        summary.found["ceilings"] = msgspec.to_builtins(measured_ceilings(host, "cuda"))
    with summary.step("gate"):
        gate(targets, out)
    with summary.step("run"):
        archbench("run", *targets, log=out / "run.log")
    with summary.step("results"):
        carry(summary.found["machine"], out)
    with summary.step("board"):
        archbench("board", "--out", str(out / "site"), log=out / "board.log")
    print(f"\n{out}: carry it home; there, archbench merge {out.name}/results joins the results")
    if summary.failures:
        print(f"gpu_session: not well: {', '.join(summary.failures)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
