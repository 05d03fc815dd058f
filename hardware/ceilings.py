"""What this machine can really do: copy and read bandwidth, matrix rate per dtype, at one thread and at all cores.

A ceiling is the *best* rate seen, because it is used as a limit. Bandwidth buffers are over four times the last-level
cache (but at most a quarter of the free memory each). Results are cached per boot: on a shared machine another
boot may be another neighbourhood.

Source: McCalpin 1995 (STREAM) for the buffer rule; bytes of a copy count once read and once written.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from archbench.cells import Ceiling
from archbench.hardware.cpu import read_text
from archbench.hardware.detect import Host
from archbench.hardware.profiles import Profile, match
from archbench.track import Device

BUFFER_SHARE_OF_CACHE = 4
REPEATS = 5
MATRIX_SIZES = (1024, 2048)
SLOW_RATE = 5e9  # operations per second below which a dtype is emulated here and one small product is enough


def boot_id() -> str:
    """Changes with every boot."""
    return read_text(Path("/proc/sys/kernel/random/boot_id")) or str(int(psutil.boot_time()))


def cache_folder() -> Path:
    """Where this user's measured ceilings are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "archbench"


def ceilings(
    host: Host,
    device: Device,
    *,
    dtypes: Sequence[str],
    threads: Sequence[int],
    cache_dir: Path | None = None,
    refresh: bool = False,
) -> list[Ceiling]:
    """The ceilings of a device, from the cache of this boot or measured now (some 20 seconds).

    ``threads`` applies to CPUs. Each ceiling carries its time stamp, and the datasheet's figure where there is one.
    """
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        torch_version = "none"
    kind = host.gpus[0].name if device == "cuda" else host.cpu.model
    key = json.dumps([boot_id(), device, kind, host.cpu.cores, sorted(threads), sorted(dtypes), torch_version, 2])
    path = (cache_dir or cache_folder()) / f"ceilings-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if not refresh:
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[Ceiling])
        except (OSError, msgspec.DecodeError):
            pass  # not measured since this boot, or unreadable: measure
    measured = _cuda(dtypes) if device == "cuda" else _cpu(host, dtypes, threads)
    stamped = [_with_datasheet(ceiling, match(host, device)) for ceiling in measured]
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(f".{os.getpid()}")
    staged.write_bytes(msgspec.json.encode(stamped))
    os.replace(staged, path)
    return stamped


def _with_datasheet(ceiling: Ceiling, profile: Profile | None) -> Ceiling:
    datasheet = None
    if profile is not None:
        datasheet = profile.matrix_per_s.get(ceiling.dtype or "") if ceiling.dtype else profile.memory_bytes_per_s
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return msgspec.structs.replace(ceiling, datasheet=datasheet, measured=now)


def _best_seconds(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    call()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def buffer_bytes(cache_bytes: int, available: int) -> int:
    """Over four times the last-level cache, at least 64 MiB, at most a quarter of the memory that is free."""
    return min(max(BUFFER_SHARE_OF_CACHE * cache_bytes + (1 << 20), 64 << 20), available // 4)


def _cpu(host: Host, dtypes: Sequence[str], threads: Sequence[int]) -> list[Ceiling]:
    size = buffer_bytes(max(host.cpu.cache_bytes.values(), default=0), psutil.virtual_memory().available)
    try:
        import torch
    except ImportError:
        return _numpy(size, dtypes)
    found = []
    before = torch.get_num_threads()
    try:
        for count in threads:
            torch.set_num_threads(count)
            found += _bandwidth(torch, size, "cpu", count, _best_seconds)
        for count in threads:
            torch.set_num_threads(count)
            for dtype in dtypes:
                rate = _matrix_rate(torch, dtype, "cpu")
                if rate is not None:
                    found.append(Ceiling("matrix", rate, "op/s", threads=count, dtype=dtype))
    finally:
        torch.set_num_threads(before)
    return found


def _bandwidth(
    torch: Any, size: int, device: str, threads: int | None, best: Callable[[Callable[[], Any]], float]
) -> list[Ceiling]:
    """Copy and read bandwidth over buffers of ``size`` bytes; they are freed on return."""
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return [
        Ceiling("copy", 2 * size / best(lambda: target.copy_(source)), "B/s", threads=threads),
        Ceiling("read", size / best(source.sum), "B/s", threads=threads),
    ]


def _product(torch: Any, dtype: str, n: int, device: str) -> Callable[[], Any] | None:
    """An n x n matrix product in a dtype, or None where torch has none on this device."""
    call: Callable[[], Any]
    kinds = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if dtype == "int8":
        a = torch.randint(-8, 8, (n, n), dtype=torch.int8, device=device)
        b = torch.randint(-8, 8, (n, n), dtype=torch.int8, device=device).t().contiguous().t()
        call = partial(torch._int_mm, a, b)
    elif dtype in kinds:
        a = torch.randn(n, n, device=device).to(kinds[dtype])
        b = torch.randn(n, n, device=device).to(kinds[dtype])
        out = torch.empty(n, n, dtype=kinds[dtype], device=device)
        call = partial(torch.mm, a, b, out=out)
    else:
        return None
    try:
        call()
    except RuntimeError:
        return None
    return call


def _matrix_rate(torch: Any, dtype: str, device: str) -> float | None:
    """The best rate over sizes, in operations per second; None where the dtype does not run."""
    probe = _product(torch, dtype, 256, device)
    if probe is None:
        return None
    best = 2 * 256**3 / _best_seconds(probe)
    if best < SLOW_RATE:
        return best
    for n in MATRIX_SIZES:
        call = _product(torch, dtype, n, device)
        if call is not None:
            best = max(best, 2 * n**3 / _best_seconds(call))
    return best


def _numpy(size: int, dtypes: Sequence[str]) -> list[Ceiling]:
    """Without torch: numpy's copy, sum and matrix product, with the threads its BLAS takes."""
    source = np.ones(size // 4, dtype=np.float32)
    target = np.empty_like(source)
    found = [
        Ceiling("copy", 2 * size / _best_seconds(lambda: np.copyto(target, source)), "B/s"),
        Ceiling("read", size / _best_seconds(source.max), "B/s"),
    ]
    for dtype, kind in (("fp64", np.float64), ("fp32", np.float32)):
        if dtype in dtypes:
            a = np.random.default_rng(0).normal(size=(1024, 1024)).astype(kind)
            found.append(Ceiling("matrix", 2 * 1024**3 / _best_seconds(partial(np.matmul, a, a)), "op/s", dtype=dtype))
    return found


def _cuda(dtypes: Sequence[str]) -> list[Ceiling]:
    import torch

    def best(call: Callable[[], Any], repeats: int = 20) -> float:
        call()
        torch.cuda.synchronize()
        fastest = float("inf")
        for _ in range(repeats):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            fastest = min(fastest, start.elapsed_time(end) * 1e-3)
        return fastest

    free, _ = torch.cuda.mem_get_info()
    size = buffer_bytes(max(int(torch.cuda.get_device_properties(0).L2_cache_size), 512 << 20), free)
    found = _bandwidth(torch, size, "cuda", None, best)
    for dtype in dtypes:
        rates = []
        for n in (4096, 8192):
            call = _product(torch, dtype, n, "cuda")
            if call is not None:
                rates.append(2 * n**3 / best(call, 10))
        if rates:
            found.append(Ceiling("matrix", max(rates), "op/s", dtype=dtype))
    return found
