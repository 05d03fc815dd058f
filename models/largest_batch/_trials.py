"""One trial: fresh ranks under a cap make two updates at a batch, tell their highest memory, and end.

RLIMIT_DATA counts private memory a process may write to, touched or not (VmData); its highest is not kept by the
kernel, so it is put together from what is: the most that was resident at once, without pages of files, and what is
mapped but was never touched, thread stacks above all. glibc keeps freed blocks in its heap, with holes between them, as
many as the order of two threads left; with a mapping of its own for each larger block, memory counts while it is alive
and no longer, and two trials agree to a MiB.

Source: https://man7.org/linux/man-pages/man2/getrlimit.2.html; https://man7.org/linux/man-pages/man3/mallopt.3.html
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from archbench.models import parallel
from archbench.models.parallel import BACKENDS, ParallelCase
from archbench.models.parallel._launch.ranks import Ranks
from archbench.nodes import Nodes
from archbench.track import Failed

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}
TRIAL_S = 300.0  # for two updates: at the largest batch some ten seconds, on a busy machine a minute
EMPTY_LENGTH = 1


class Trial(msgspec.Struct, frozen=True):
    """What came of one batch. ``peak_bytes``: of the largest rank, where it fits."""

    batch: int
    fits: bool
    peak_bytes: int = 0
    reason: str = ""


def trial(module: str, case: ParallelCase, size: int, cap_bytes: int, seed: int) -> Trial:
    """Two updates of ``size`` ranks. Raises Failed where anything but memory ends them."""
    try:
        with _allocator():
            ranks = Ranks(module, case, size, nodes=Nodes(), cap_bytes=cap_bytes)
        try:
            ranks.ask("train", *parallel.make_inputs(case, seed, BACKENDS[case.backend]), within_s=TRIAL_S)
            return Trial(case.batch, True, peak_bytes(ranks, case))
        finally:
            ranks.close()
    except Failed as failed:
        if failed.status != "oom":
            raise
        return Trial(case.batch, False, reason=str(failed))


def empty_bytes(module: str, case: ParallelCase, size: int) -> int:
    """What a rank takes whose model is almost nothing: interpreter, PyTorch, threads, buffers of the backend."""
    nothing = replace(case, dim=case.heads, length=EMPTY_LENGTH, vocabulary=2, batch=case.micro_batches * case.world)
    return trial(module, nothing, size, 0, 0).peak_bytes


def peak_bytes(ranks: Ranks, case: ParallelCase) -> int:
    """The most memory the largest rank has had, in what its cap counts."""
    if BACKENDS[case.backend] == "cuda":
        return max(ranks.ask("peaks"))
    return max(data_peak_bytes(Path(f"/proc/{pid}/status").read_text()) for pid in ranks.pids())


def data_peak_bytes(status: str) -> int:
    """The highest VmData of a process between two calls, from its /proc/PID/status."""
    kib = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith(" kB")}
    untouched = kib["VmData"] - kib["RssAnon"]
    return (kib["VmHWM"] - kib["RssFile"] - kib["RssShmem"] + untouched) << 10


@contextmanager
def _allocator() -> Iterator[None]:
    """Processes that are started within have glibc's allocator set so."""
    before = {name: os.environ.get(name) for name in ALLOCATOR}
    os.environ.update(ALLOCATOR)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
