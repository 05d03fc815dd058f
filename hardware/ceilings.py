"""What this machine can really do: copy and read bandwidth, matrix rate per dtype, at one thread and at all cores.

A ceiling is the *best* rate seen, because it is used as a limit: a CPU's buffers lie in huge pages where the kernel has
them, its copy is tried with stores that go around the caches, its read with a loop that does nothing else, and its
float32 rate with multiplications that stay in registers: a product of ours may be faster than the BLAS. Bandwidth
buffers are over four times all last-level caches together (but at most a quarter of the free memory each). Results are
cached per boot: on a shared machine another boot may be another neighbourhood.

Source: McCalpin 1995 (STREAM) for the buffer rule; bytes of a copy count once read and once written.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import psutil

from archbench.cells import Ceiling
from archbench.hardware import native
from archbench.hardware.cgroup import memory_free, read_text
from archbench.hardware.detect import Host
from archbench.hardware.profiles import Profile, match
from archbench.track import Device, Unavailable

BUFFER_SHARE_OF_CACHE = 4
LEAST_BUFFER_BYTES = 64 << 20  # also where no cache size is reported
GPU_BUFFER_BYTES = 2 << 30  # sixteen times the largest L2 of today
CPU_MATRIX_SIZES = (256, 1024, 2048)
GPU_MATRIX_SIZES = (4096, 8192)
REPEATS = 5  # at least, and for at least CPU_WINDOW_S: a neighbour's burst must not cover all of them
CPU_WINDOW_S = 0.1
GPU_WINDOW_S = 0.25  # an idle card needs time to raise its clock
LONGEST_CALL_S = 0.5  # a larger product is not tried where a call would take longer: emulated dtypes, small boards
DTYPES = {"fp64", "fp32", "tf32", "bf16", "fp16", "int8"}
LINE_BYTES = 64
ROUNDS = 1 << 20  # of the loop of multiplications: some milliseconds
LOOPS = Path(__file__).parent / "_cpu"
SERIES = 7  # raise when ceilings are measured differently: older cache files are then measured again

Floats = npt.NDArray[np.float32]
Best = Callable[[Callable[[], Any]], float]  # a call -> the fewest seconds it took


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

    ``threads`` applies to CPUs. ``dtypes`` that do not run here are left out; "tf32" is fp32 on a GPU's TF32 units.
    Each ceiling carries its time stamp, and the datasheet's figure where there is one.
    """
    path = (cache_dir or cache_folder()) / f"ceilings-{_cache_key(host, device, dtypes, threads)}.json"
    if not refresh:
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[Ceiling])
        except (OSError, msgspec.DecodeError):
            pass  # not measured since this boot, or unreadable: measure
    measured = _cuda(dtypes) if device == "cuda" else _cpu(host, dtypes, threads)
    profile, now = match(host, device), datetime.now(UTC).isoformat(timespec="seconds")
    stamped = [
        msgspec.structs.replace(c, datasheet=_datasheet(c, profile, device, host.cpu.cores), measured=now)
        for c in measured
    ]
    with contextlib.suppress(OSError):  # a home that cannot be written only costs the next run its 20 seconds
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(f".{os.getpid()}")
        staged.write_bytes(msgspec.json.encode(stamped))
        os.replace(staged, path)
    return stamped


def _cache_key(host: Host, device: Device, dtypes: Sequence[str], threads: Sequence[int]) -> str:
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        torch_version = "none"
    kind = [host.gpus[0].name, host.gpus[0].uuid, host.gpus[0].driver] if device == "cuda" else [host.cpu.model]
    key = [SERIES, boot_id(), device, *kind, host.cpu.cores, sorted(threads), sorted(dtypes), torch_version]
    return hashlib.sha256(msgspec.json.encode(key)).hexdigest()[:16]


def _datasheet(ceiling: Ceiling, profile: Profile | None, device: Device, cores: int) -> float | None:
    """The profile's peak for a ceiling. It speaks of the whole device: a single thread has none."""
    if profile is None or (ceiling.threads is not None and ceiling.threads < cores):
        return None
    return profile.matrix_rate(ceiling.dtype, device) if ceiling.dtype else profile.memory_bytes_per_s


def buffer_bytes(cache_bytes: int, available: int) -> int:
    """Over four times the last-level caches, at least 64 MiB, at most a quarter of the memory that is free."""
    return min(max(BUFFER_SHARE_OF_CACHE * cache_bytes + (1 << 20), LEAST_BUFFER_BYTES), available // 4)


def available_bytes() -> int:
    """Memory this process may still take: what the machine has left, and what its control group has left."""
    left = memory_free()
    available: int = psutil.virtual_memory().available
    return available if left is None else min(available, left)


def bandwidth_note(host: Host) -> str:
    """How large the buffers of copy and read are on this CPU now, and whether that is enough to pass its caches."""
    cache = host.cpu.last_level_bytes
    size = buffer_bytes(cache, available_bytes())
    text = f"copy and read of a CPU use buffers of {size / (1 << 20):.0f} MiB"
    if not cache:
        return f"{text}; no cache size is reported here"
    if size < BUFFER_SHARE_OF_CACHE * cache:
        return f"{text}, bounded by a quarter of the free memory: {size / cache:.1f} x the last-level caches, not 4 x"
    return f"{text}: over {BUFFER_SHARE_OF_CACHE} x the last-level caches"


def _best_seconds(call: Callable[[], Any]) -> float:
    """The fewest seconds of a call after a warm-up; of fewer repeats where a call takes long."""
    call()
    start, best, repeats = time.perf_counter(), float("inf"), 0
    spent = 0.0
    while spent < CPU_WINDOW_S or (repeats < REPEATS and spent < 2 * LONGEST_CALL_S):
        begun = time.perf_counter()
        call()
        ended = time.perf_counter()
        best, repeats, spent = min(best, ended - begun), repeats + 1, ended - start
    return best


def _cpu(host: Host, dtypes: Sequence[str], threads: Sequence[int]) -> list[Ceiling]:
    size = buffer_bytes(host.cpu.last_level_bytes, available_bytes())
    try:
        import torch
    except ImportError:
        by_numpy = [*_numpy_bandwidth(size, threads), *_numpy_matrix(dtypes)]
        return _raise_to_fewer_threads(_raise_to_multipliers(by_numpy, host.cpu.cores))
    found: list[Ceiling] = []
    before = torch.get_num_threads()
    try:
        found += _bandwidth(torch, size, "cpu", threads, _best_seconds)
        for count in threads:
            torch.set_num_threads(count)
            found += _matrix(torch, dtypes, "cpu", count, CPU_MATRIX_SIZES, _best_seconds)
    finally:
        torch.set_num_threads(before)
    return _raise_to_fewer_threads(_raise_to_multipliers(found, host.cpu.cores))


def _raise_to_multipliers(found: Sequence[Ceiling], cores: int) -> list[Ceiling]:
    """Float32 products can be no faster than multiplications that wait for nothing; a BLAS comes close at best."""
    return [
        msgspec.structs.replace(c, value=max(c.value, multiply_add_rate(c.threads or cores)))
        if (c.name, c.dtype) == ("matrix", "fp32")
        else c
        for c in found
    ]


def multiply_add_rate(threads: int) -> float:
    """Float32 operations per second of so many threads that multiply and add in registers; 0 without a compiler."""
    try:
        library = native.load(LOOPS)
    except (Unavailable, RuntimeError, OSError):
        return 0.0
    loop, count = library.archbench_multiply_add, library.archbench_multiply_add_operations
    loop.restype, count.restype = ctypes.c_float, ctypes.c_int64
    call = partial(loop, ctypes.c_int64(ROUNDS), ctypes.c_float(0.5), ctypes.c_float(1.0), threads)
    operations: int = count() * ROUNDS * threads
    return operations / _best_seconds(call)


def _raise_to_fewer_threads(found: list[Ceiling]) -> list[Ceiling]:
    """A call that may use two threads may use one: no ceiling is below that of fewer threads.

    Without this a busy neighbour, or a product too small to share, would make the limit of two threads the lower one.
    """

    def reached(c: Ceiling) -> float:
        alike = (o for o in found if (o.name, o.dtype) == (c.name, c.dtype))
        return max(o.value for o in alike if (o.threads or 0) <= (c.threads or 0))

    return [msgspec.structs.replace(c, value=reached(c)) for c in found]


def _bandwidth(torch: Any, size: int, device: str, threads: Sequence[int | None], best: Best) -> list[Ceiling]:
    """Copy and read bandwidth over buffers of ``size`` bytes; they are freed on return."""
    if device == "cpu":
        source, target = (torch.from_numpy(in_huge_pages(size)) for _ in range(2))
    else:
        source, target = (torch.ones(size // 4, dtype=torch.float32, device=device) for _ in range(2))
    found = []
    for count in threads:
        if count is not None:
            torch.set_num_threads(count)
        ways = _Streaming.of(source.numpy(), target.numpy(), count) if device == "cpu" else _Streaming()
        copies, reads = (lambda: target.copy_(source), *ways.copy), (source.sum, *ways.read)
        found.append(Ceiling("copy", 2 * size / min(map(best, copies)), "B/s", count))
        found.append(Ceiling("read", size / min(map(best, reads)), "B/s", count))
    return found


def in_huge_pages(size: int) -> Floats:
    """Ones, in huge pages where the kernel gives them: half of a reading's time went into 4 KiB page tables, seen below
    a hypervisor. Every page is touched: untouched memory has none yet.
    """
    if sys.platform == "win32":
        memory = mmap.mmap(-1, size)
    else:  # private: memory that could be shared gets no huge pages
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    found = np.frombuffer(memory, np.float32, size // 4)
    found[:] = 1
    return found


@dataclass(frozen=True)
class _Streaming:
    """Loops that only copy, around the caches, or only read: some kernels come so far, library calls do not."""

    copy: tuple[Callable[[], Any], ...] = ()
    read: tuple[Callable[[], Any], ...] = ()

    @classmethod
    def of(cls, source: Floats, target: Floats, threads: int | None) -> _Streaming:
        """Of two buffers; none without a C++ compiler."""
        try:
            library = native.load(LOOPS)
        except (Unavailable, RuntimeError, OSError):
            return cls()
        starts = [ctypes.c_void_p(-(-a.ctypes.data // LINE_BYTES) * LINE_BYTES) for a in (target, source)]
        long = ctypes.c_int64((source.nbytes - LINE_BYTES) // LINE_BYTES * LINE_BYTES)
        return cls(
            (partial(library.archbench_copy, *starts, long, threads or 1),),
            (partial(library.archbench_read, starts[1], long, threads or 1),),
        )


@contextmanager
def _float32_precision(torch: Any, precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _product(torch: Any, dtype: str, n: int, device: str) -> Callable[[], Any]:
    """An n x n matrix product in a dtype."""
    if dtype == "int8":
        a = torch.randint(-8, 8, (n, n), dtype=torch.int8, device=device)
        b = torch.randint(-8, 8, (n, n), dtype=torch.int8, device=device).t().contiguous().t()
        return partial(torch._int_mm, a, b)
    kind = {"fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype, torch.float32)
    a, b = torch.randn(n, n, device=device).to(kind), torch.randn(n, n, device=device).to(kind)
    return partial(torch.mm, a, b, out=torch.empty(n, n, dtype=kind, device=device))


def _matrix(
    torch: Any, dtypes: Sequence[str], device: str, threads: int | None, sizes: Sequence[int], best: Best
) -> list[Ceiling]:
    """The best rate over sizes per dtype, in operations per second; dtypes that do not run here are left out."""
    runs = DTYPES if device == "cuda" else DTYPES - {"tf32"}
    found = []
    for dtype in (d for d in dtypes if d in runs):
        rate = 0.0
        with _float32_precision(torch, "high" if dtype == "tf32" else "highest"):
            for n in sizes:
                if rate and 2 * n**3 / rate > LONGEST_CALL_S:
                    break
                try:
                    rate = max(rate, 2 * n**3 / best(_product(torch, dtype, n, device)))
                except RuntimeError:
                    break  # torch has no such product on this device, or no memory for this size
        if rate:
            found.append(Ceiling("matrix", rate, "op/s", threads=threads, dtype=dtype))
    return found


def _numpy_bandwidth(size: int, threads: Sequence[int]) -> list[Ceiling]:
    """Without torch: the loops at every number of threads; numpy's copy and maximum, which take one."""
    source, target = in_huge_pages(size), in_huge_pages(size)
    found = []
    for count in threads:
        ways = _Streaming.of(source, target, count)
        copies: tuple[Callable[[], Any], ...] = (lambda: np.copyto(target, source), *ways.copy)
        reads: tuple[Callable[[], Any], ...] = (source.max, *ways.read)
        found.append(Ceiling("copy", 2 * size / min(map(_best_seconds, copies)), "B/s", count))
        found.append(Ceiling("read", size / min(map(_best_seconds, reads)), "B/s", count))
    return found


def _numpy_matrix(dtypes: Sequence[str]) -> list[Ceiling]:
    """Without torch: numpy's matrix product, with the threads its BLAS takes."""
    found = []
    for dtype, kind in (("fp64", np.float64), ("fp32", np.float32)):
        if dtype in dtypes:
            a = np.random.default_rng(0).normal(size=(1024, 1024)).astype(kind)
            found.append(Ceiling("matrix", 2 * 1024**3 / _best_seconds(partial(np.matmul, a, a)), "op/s", dtype=dtype))
    return found


def _cuda(dtypes: Sequence[str], device: str = "cuda") -> list[Ceiling]:
    import torch

    def best(call: Callable[[], Any]) -> float:
        call()
        torch.cuda.synchronize()
        begun, fastest, repeats = time.perf_counter(), float("inf"), 0
        while repeats < REPEATS or time.perf_counter() - begun < GPU_WINDOW_S:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            fastest, repeats = min(fastest, start.elapsed_time(end) * 1e-3), repeats + 1
        return fastest

    free, _ = torch.cuda.mem_get_info()
    found = _bandwidth(torch, min(GPU_BUFFER_BYTES, free // 4), device, (None,), best)
    found += _matrix(torch, dtypes, device, None, GPU_MATRIX_SIZES, best)
    torch.cuda.empty_cache()
    return found
