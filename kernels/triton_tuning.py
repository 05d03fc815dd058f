"""Which configuration of a Triton kernel is fastest here: measured once for each question, then remembered.

A question is a kernel with everything that decides how fast it is: shapes, dtype, mask, GPU. Its candidates are timed
in rounds, all of them in every round, so that a clock that drifts meanwhile drifts for all; the smallest median wins.
The answer goes to a file of the user's cache, named after the GPU, Triton and the kernels' source; who asked keeps it
in memory. So a case is tuned by its first call, which no clock of the harness sees, and by no later one.

Triton's own ``autotune`` chooses among configurations of one kernel; here two ways to do a backward may compete.

Source: https://specifications.freedesktop.org/basedir-spec/latest/ (where the file lies)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import triton
from triton.runtime.errors import OutOfResources, PTXASError

ROUNDS = 7
ROUND_S = 0.002  # of one candidate: short kernels are repeated to fill it

ConfigT = TypeVar("ConfigT")  # a frozen dataclass of what JSON can hold
Launch = Callable[[ConfigT], object]
Stopwatch = Callable[[Callable[[], object], int], float]  # seconds of a number of calls


@dataclass(frozen=True)
class Choice(Generic[ConfigT]):
    """The fastest configuration, and the seconds it took."""

    config: ConfigT
    seconds: float


def device_seconds(call: Callable[[], object], repeats: int) -> float:
    """Seconds the current CUDA stream takes for ``repeats`` calls."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def race(
    candidates: Sequence[ConfigT], launch: Launch[ConfigT], seconds: Stopwatch = device_seconds
) -> Choice[ConfigT]:
    """The candidate with the smallest median. One that this GPU has no room for is left out."""
    repeats: dict[ConfigT, int] = {}
    for config in candidates:
        try:
            launch(config)
        except (OutOfResources, PTXASError):
            continue
        took = seconds(lambda config=config: launch(config), 1)  # type: ignore[misc]
        repeats[config] = max(1, min(50, int(ROUND_S / max(took, 1e-9))))
    if not repeats:
        raise RuntimeError(f"none of {len(candidates)} configurations runs on this GPU")
    times: dict[ConfigT, list[float]] = {config: [] for config in repeats}
    for _ in range(ROUNDS):
        for config, number in repeats.items():
            times[config].append(seconds(lambda config=config: launch(config), number) / number)  # type: ignore[misc]
    medians = {config: statistics.median(values) for config, values in times.items()}
    best = min(medians, key=lambda config: medians[config])
    return Choice(best, medians[best])


@dataclass(frozen=True)
class Tuner(Generic[ConfigT]):
    """What one contender asks. ``sources`` are the files of its kernels: a change in one makes all choices anew."""

    name: str
    kind: type[ConfigT]
    sources: tuple[Path, ...]

    def fastest(
        self, question: str, candidates: Sequence[ConfigT], launch: Launch[ConfigT], seconds: Stopwatch = device_seconds
    ) -> Choice[ConfigT]:
        """The fastest candidate: from the file, or raced now on the current CUDA device."""
        gpu = torch.cuda.get_device_name()
        path, key = self.store_path(gpu), f"{gpu} {question}"
        found = self.recall(path).get(key)
        if found is None or found.config not in candidates:
            found = race(candidates, launch, seconds)
            self.remember(path, key, found)
        return found

    def store_path(self, gpu: str) -> Path:
        """The file of a GPU's choices; another one as soon as Triton or a kernel changes."""
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        digest = hashlib.sha256(f"{gpu} {triton.__version__}".encode())
        for source in self.sources:
            digest.update(source.read_bytes())
        return base / "archbench" / self.name / f"{digest.hexdigest()[:16]}.json"

    def recall(self, path: Path) -> dict[str, Choice[ConfigT]]:
        """What the file holds; nothing where there is none or it is not ours."""
        try:
            entries: dict[str, Any] = json.loads(path.read_text())
            return {
                key: Choice(self.kind(**entry["config"]), float(entry["seconds"])) for key, entry in entries.items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def remember(self, path: Path, key: str, choice: Choice[ConfigT]) -> None:
        """Add a choice. What is lost is measured again: by who writes at the same time, or has no place to write to."""
        entries = {name: asdict(value) for name, value in (self.recall(path) | {key: choice}).items()}
        beside = path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(entries, indent=1))
            beside.replace(path)
