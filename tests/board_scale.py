"""Compare what the board costs with what ``asv publish`` costs, on archives of any size.

A script, not a test: it writes a repository and a results folder shaped like a real archive (noise, steps, skipped
benchmarks as bare NaN), runs ``archbench board`` twice and once more after one new file, and prints the CPU time, wall
time and peak memory of each process. ``--asv`` runs ``asv publish`` on the same archive, which takes minutes for a
million points.

    python tests/board_scale.py --files 140 --asv
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS = ["result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b", "stats_q_25",
           "stats_q_75", "stats_number", "stats_repeat", "samples", "profile"]  # fmt: skip
SHAPES: list[list[list[str]]] = [[], [], [["10", "1000"]], [["10", "1000", "100000"], ["'int64'", "'float64'"]], []]
MACHINE, ENVIRONMENT = "box", "virtualenv-py3.11-numpy"
START = 1_500_000_000
DAY = 86_400


@dataclass(frozen=True)
class Series:
    """How one benchmark at one parameter combination behaves over the commits."""

    level: float
    noise: float
    steps: list[tuple[int, float]]  # from this commit on the level is multiplied
    missing: float  # the share of commits at which it is skipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=140, help="result files, one a commit")
    parser.add_argument("--points", type=int, default=700, help="points a file")
    parser.add_argument("--flat", action="store_true", help="benchmarks without parameters")
    parser.add_argument("--nan", type=float, default=0.03, help="share of points that are NaN")
    parser.add_argument("--asv", action="store_true", help="run asv publish, too")
    parser.add_argument("--keep", type=Path, help="write the archive here and leave it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="archbench-scale-") as scratch:
        top = arguments.keep or Path(scratch)
        top.mkdir(parents=True, exist_ok=True)
        write = Archive(top, arguments.files, arguments.points, arguments.nan, arguments.flat)
        if not (top / "results").exists():
            write.everything()
        board = [sys.executable, "-m", "archbench", "board", "--results", "results", "--out", "site"]
        environment = os.environ | {"XDG_CACHE_HOME": str(top / "cache")}
        print(f"{arguments.files} files, {arguments.files * arguments.points} points")
        cold = measured("board", board, top, environment)
        measured("board, again", board, top, environment)
        write.one_more()
        measured("board, one new file", board, top, environment)
        if arguments.asv:
            theirs = measured("asv publish", [sys.executable, "-m", "asv", "publish", "--no-pull"], top, environment)
            print(f"asv publish takes {theirs / cold:.0f} times the CPU of the first board")


def measured(name: str, command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Run a command, print what it cost, return its CPU seconds, those of its own children included."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{output.read().decode()[-3000:]}\nexit code {process.returncode}")
    wall, cpu = time.perf_counter() - start, used.ru_utime + used.ru_stime
    print(f"{name:20} {cpu:8.2f} CPU s {wall:8.2f} s {used.ru_maxrss / 1024:6.0f} MB", flush=True)
    return cpu


class Archive:
    """A repository with one commit a file, and the results of each."""

    def __init__(self, top: Path, files: int, points: int, nan: float, flat: bool) -> None:
        self.top, self.files, self.points = top, files, points
        self.random = random.Random(20260131)
        self.benchmarks: dict[str, list[list[str]]] = {}
        self.series: dict[str, list[Series]] = {}
        left, shapes = points, itertools.cycle([[]] if flat else SHAPES)
        while left:
            axes = next(shapes)
            size = len(list(itertools.product(*axes)))
            if size > left:
                axes, size = [], 1
            name = f"suite_{len(self.benchmarks) % 20}.Case.time_{len(self.benchmarks)}"
            self.benchmarks[name] = axes
            self.series[name] = [self._series(nan) for _ in range(size)]
            left -= size

    def _series(self, nan: float) -> Series:
        count = self.random.choice([0, 0, 1, 1, 2, 4])
        steps = sorted(
            (self.random.randrange(self.files), self.random.choice([0.7, 0.9, 1.1, 1.5])) for _ in range(count)
        )
        gaps = self.random.choice([0.0, 0.0, 2 * nan, 2 * nan])
        return Series(10 ** self.random.uniform(-6, -1), self.random.choice([0.003, 0.01, 0.05]), steps, gaps)

    def everything(self) -> None:
        results = self.top / "results" / MACHINE
        results.mkdir(parents=True)
        (results / "machine.json").write_text(json.dumps({"machine": MACHINE, "version": 1}))
        described: dict[str, Any] = {
            name: {"name": name, "type": "time", "unit": "seconds", "version": "1", "params": axes, "code": "",
                   "param_names": ["n", "dtype"][: len(axes)], "timeout": 60.0}
            for name, axes in self.benchmarks.items()
        }  # fmt: skip
        (self.top / "results" / "benchmarks.json").write_text(json.dumps(described | {"version": 2}))
        for index, commit in enumerate(self._commits(self.files)):
            self._write(index, commit)
        settings = {"version": 1, "project": "scale", "repo": str(self.top / "repository"), "branches": ["main"],
                    "results_dir": "results", "html_dir": "html", "environment_type": "existing"}  # fmt: skip
        (self.top / "asv.conf.json").write_text(json.dumps(settings))

    def one_more(self) -> None:
        """A commit and its result file more: every series gets a point."""
        commits = list(self._commits(len(list((self.top / "results" / MACHINE).glob("*-*.json"))) + 1))
        self._write(len(commits) - 1, commits[-1])

    def _commits(self, count: int) -> Iterator[str]:
        """The hashes of a history of so many commits; what they hold, and so their hashes, never changes."""
        repository = self.top / "repository"
        subprocess.run(["git", "init", "-q", "-b", "main", str(repository)], check=True)
        stream = "".join(
            f"commit refs/heads/main\ncommitter scale <scale@example.org> {START + i * DAY} +0000\ndata 2\nc\n"
            for i in range(count)
        )
        fast_import = ["git", "fast-import", "--quiet", "--force"]
        subprocess.run(fast_import, cwd=repository, input=stream.encode(), check=True)
        log = ["git", "log", "--format=%H", "--reverse", "main"]
        yield from subprocess.run(log, cwd=repository, check=True, capture_output=True, text=True).stdout.split()

    def _write(self, index: int, commit: str) -> None:
        rows: dict[str, list[Any]] = {}
        for name, axes in self.benchmarks.items():
            values = [self._value(series, index) for series in self.series[name]]
            known = [value == value for value in values]
            ends = [
                [float(f"{v * factor:.5g}") if ok else None for v, ok in zip(values, known, strict=True)]
                for factor in (0.985, 1.015, 0.995, 1.005)
            ]
            number, repeat = [[n if ok else None for ok in known] for n in (2, 10)]
            rows[name] = [values, axes, "1", 1_700_000_000_000 + index, 0.5, *ends, number, repeat]
        data = {
            "commit_hash": commit, "env_name": ENVIRONMENT, "date": (START + index * DAY) * 1000,
            "params": {"machine": MACHINE, "python": "3.11", "numpy": "", "os": "Linux"}, "python": "3.11",
            "requirements": {"numpy": ""}, "env_vars": {}, "result_columns": COLUMNS, "results": rows,
            "durations": {}, "version": 2,
        }  # fmt: skip
        path = self.top / "results" / MACHINE / f"{commit[:8]}-{ENVIRONMENT}.json"
        path.write_text(json.dumps(data))

    def _value(self, series: Series, index: int) -> float:
        if self.random.random() < series.missing:
            return float("nan")
        level = series.level
        for start, factor in series.steps:
            level *= factor if index >= start else 1.0
        return level * abs(1 + self.random.gauss(0, series.noise))


if __name__ == "__main__":
    main()
