"""Which configuration of ``triton_grouped`` is fastest here: measured once for each question, then remembered.

A question is a kernel with everything that decides how fast it is: shapes, dtype, GPU. Its candidates are timed in
rounds, all of them in every round, so that a clock that drifts meanwhile drifts for all; the smallest median wins. The
answer goes to a file of the user's cache, named after the GPU, Triton and the kernels' source; who asked keeps it in
memory. So a case is tuned by its first call, which no clock of the harness sees, and by no later one.

Source: https://specifications.freedesktop.org/basedir-spec/latest/ (where the file lies)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import triton
from triton.runtime.errors import OutOfResources, PTXASError

from archbench.kernels.moe_ffn._triton_space import Config

ROUNDS = 7

Launch = Callable[[Config], object]
Stopwatch = Callable[[Callable[[], object]], float]  # seconds of a call


def device_seconds(call: Callable[[], object]) -> float:
    """Seconds the current CUDA stream takes for a call."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def store_path(gpu: str) -> Path:
    """The file of a GPU's choices; another one as soon as Triton or a kernel changes."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(f"{gpu} {triton.__version__}".encode())
    for source in sorted(Path(__file__).parent.glob("_triton_*.py")):
        digest.update(source.read_bytes())
    return base / "archbench" / "triton_grouped" / f"{digest.hexdigest()[:16]}.json"


def recall(path: Path) -> dict[str, Config]:
    """What the file holds; nothing where there is none or it is not ours."""
    try:
        return {key: Config(**entry) for key, entry in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def remember(path: Path, key: str, config: Config) -> None:
    """Add a choice. What is lost is measured again: by who writes at the same time, or has no place to write to."""
    entries = {name: asdict(value) for name, value in (recall(path) | {key: config}).items()}
    beside = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(entries, indent=1))
        beside.replace(path)


def race(candidates: Sequence[Config], launch: Launch, seconds: Stopwatch = device_seconds) -> Config:
    """The candidate with the smallest median. One that this GPU has no room for is left out."""
    times: dict[Config, list[float]] = {}
    for config in candidates:
        try:
            launch(config)
        except (OutOfResources, PTXASError):
            continue
        times[config] = []
    if not times:
        raise RuntimeError(f"none of {len(candidates)} configurations runs on this GPU")
    for _ in range(ROUNDS):
        for config, measured in times.items():
            measured.append(seconds(lambda config=config: launch(config)))  # type: ignore[misc]
    return min(times, key=lambda config: statistics.median(times[config]))


def fastest(question: str, candidates: Sequence[Config], launch: Launch) -> Config:
    """The fastest candidate: from the file, or raced now on the current CUDA device."""
    if len(candidates) == 1:
        return candidates[0]
    gpu = torch.cuda.get_device_name()
    path, key = store_path(gpu), f"{gpu} {question}"
    found = recall(path).get(key)
    if found is None or found not in candidates:
        found = race(candidates, launch)
        remember(path, key, found)
    return found
