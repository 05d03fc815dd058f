"""A contender alone in a process of its own: how long until its first answer, and how much memory it holds.

The process that times a duel holds two contenders and what they share, so neither's memory can be told there. Here a
new interpreter builds one contender, asks it once, and reports the kernel's high-water mark. Each number is the mean of
three processes, the geometric one; files are in the page cache by then, as they are the second time a user starts a
program.

    python -m archbench.harness.fresh TRACK CASE CONTENDER
"""

from __future__ import annotations

import json
import platform
import re
import resource
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archbench.checks import Wrong
from archbench.discovery import load_contender, load_track
from archbench.hardware.detect import default_device, detect, place
from archbench.harness.study import Study
from archbench.reasons import short
from archbench.training import over_seeds

if TYPE_CHECKING:
    from archbench.harness.gate import Examiner

PROCESSES = 3


def load(examiner: Examiner) -> Study:
    """``load_s``, ``first_answer_s`` (loading included) and ``resident_bytes`` of a contender at a case.

    Raises Wrong where the contender, right beside its baseline, gives no answer alone.
    """
    names = (examiner.track.name, examiner.case.slug, examiner.name)
    command = [sys.executable, "-m", "archbench.harness.fresh", *names]
    found = []
    for _ in range(PROCESSES):
        done = subprocess.run(command, capture_output=True, text=True, timeout=examiner.track.timing.deadline_s)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise Wrong(f"gives no answer in a process of its own: {short(lines[-1])}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    values = {name: [float(one[name]) for one in found] for name in found[0]}
    metrics = {name: over_seeds(name, kept) for name, kept in values.items()}
    return Study(metrics=metrics, samples={name: list(kept) for name, kept in values.items()})


def highest_resident_bytes() -> int:
    """The most memory this process ever held. Linux's ``ru_maxrss`` would count what held it before ``exec``, too."""
    if platform.system() == "Linux":
        return int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _alone(track_name: str, slug: str, contender: str) -> dict[str, float]:
    from archbench.harness.measure import examiner, preload, use_threads

    track: Any = load_track(track_name)
    case, host = track.case(slug), detect()
    where = place(host, default_device(host))
    preload(track)
    use_threads(case, where)
    inputs = track.make_inputs(case, secrets.randbelow(1 << 30), where.device)
    started = time.perf_counter()
    asked = examiner(track, case, load_contender(track_name, contender), where)
    built = time.perf_counter()
    asked.work(*inputs)
    answered = time.perf_counter()
    return {
        "load_s": built - started,
        "first_answer_s": answered - started,
        "resident_bytes": highest_resident_bytes(),
    }


if __name__ == "__main__":
    print(json.dumps(_alone(*sys.argv[1:])))
