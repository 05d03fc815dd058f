"""Peak memory and energy of a call. What cannot be measured is absent, with a reason; nothing is estimated."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import re
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import psutil

from archbench.hardware import pi
from archbench.hardware.board import detect_board
from archbench.hardware.cgroup import read_text
from archbench.hardware.gpu import detect_gpus, handle_of, open_nvml
from archbench.track import Device


def peak_host_bytes(call: Callable[[], Any], root: Path = Path("/")) -> int:
    """Resident memory a call adds at its highest, in bytes, its result included.

    Linux: freed memory is returned to the system first (``malloc_trim``), the kernel's high-water mark is reset, the
    call runs once. Seen: every page the call touches, of any library, files it maps included. Not seen: pages it takes
    from memory that was resident already, such as scratch a library kept from an earlier call; memory of child
    processes; memory it reserves and never touches. The kernel counts in batches of pages per core, so a call of less
    than a mebibyte is lost in them. Where the mark cannot be reset (another system, a strict container), a thread
    samples the resident set every millisecond and may miss a shorter peak.
    """
    gc.collect()
    status = root / "proc/self/status"
    if platform.system() == "Linux":
        with contextlib.suppress(AttributeError, OSError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
        try:
            (root / "proc/self/clear_refs").write_text("5")
        except OSError:
            return _sampled_peak(call)
        before = _status_bytes(status, "VmRSS")
        if before is None or _status_bytes(status, "VmHWM") is None:
            return _sampled_peak(call)
        result = call()
        peak = _status_bytes(status, "VmHWM") or before
        del result
        return max(0, peak - before)
    return _sampled_peak(call)


def _status_bytes(status: Path, key: str) -> int | None:
    match = re.search(rf"^{key}:\s*(\d+) kB", read_text(status), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _sampled_peak(call: Callable[[], Any]) -> int:
    process, done = psutil.Process(), threading.Event()
    before: int = process.memory_info().rss
    highest: int = before

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        result = call()
        highest = max(highest, process.memory_info().rss)
        del result
    finally:
        done.set()
        thread.join()
    return highest - before


def peak_device_bytes(call: Callable[[], Any]) -> int:
    """Device memory torch's allocator hands out for a call at its highest, in bytes, its result included."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del result
    added: int = peak - before
    return added


@dataclass
class Reading:
    """Filled when the measured block ends; None when the counter failed or ran backwards inside it."""

    joules: float | None = None


def _difference(before: float, after: float, wraps_at: float | None) -> float | None:
    """Joules between two readings of one counter, across one wrap; None where it ran backwards without wrapping."""
    if after >= before:
        return after - before
    return after + wraps_at - before if wraps_at and wraps_at >= before else None


class EnergyMeter(ABC):
    """Says how much energy a block of code took.

    ``trust`` is "measured" for a hardware counter of energy, "derived" for volts times amperes. ``window_s`` is how
    long a block must last for the meter's step to be small beside it.
    """

    source: str
    trust: Literal["measured", "derived"]
    window_s: float

    @abstractmethod
    def measure(self) -> AbstractContextManager[Reading]:
        """Energy of the block. Nothing else on the device is told apart."""


@dataclass(frozen=True)
class CounterMeter(EnergyMeter):
    """A hardware energy counter. ``read`` gives joules since some start, one value per counter, or None."""

    source: str
    read: Callable[[], list[float] | None]
    wraps_at: list[float | None] = field(default_factory=list)  # per counter; None: it does not wrap
    settle: Callable[[], None] = lambda: None  # wait for device work before reading
    trust: Literal["measured", "derived"] = "measured"
    window_s: float = 1.0  # counters of NVML and RAPL advance every 1 to 100 ms

    @contextmanager
    def measure(self) -> Iterator[Reading]:
        reading = Reading()
        self.settle()
        before = self.read()
        yield reading
        self.settle()
        after = self.read()
        if before is None or after is None:
            return
        wraps = self.wraps_at or [None] * len(before)
        parts = [_difference(b, a, w) for b, a, w in zip(before, after, wraps, strict=True)]
        known = [part for part in parts if part is not None]
        reading.joules = sum(known) if len(known) == len(parts) else None


@dataclass(frozen=True)
class PowerMeter(EnergyMeter):
    """Power that a thread samples while the block runs; energy is its integral by trapezoids.

    A sample counts at the middle of its reading, and none from outside the block: the machine is idle there. From the
    block's ends to the nearest sample the power is taken to be that sample's. Fewer than ``least`` samples, or one
    that failed, give no number.
    """

    source: str
    read: Callable[[], float | None]  # watts
    trust: Literal["measured", "derived"] = "derived"
    window_s: float = 2.0  # twenty samples
    every_s: float = 0.1  # a reading keeps the Pi 5's firmware busy for some 23 ms
    least: int = 5

    @contextmanager
    def measure(self) -> Iterator[Reading]:
        reading, done = Reading(), threading.Event()
        samples: list[tuple[float, float | None]] = []

        def sample() -> None:
            while not done.is_set():
                began = time.perf_counter()
                watts = self.read()
                ended = time.perf_counter()
                samples.append(((began + ended) / 2, watts))
                done.wait(max(0.0, self.every_s - (ended - began)))

        thread = threading.Thread(target=sample, daemon=True)
        start = time.perf_counter()
        thread.start()
        try:
            yield reading
        finally:
            end = time.perf_counter()
            done.set()
            thread.join()
        reading.joules = integral([(at, watts) for at, watts in samples if at <= end], start, end, self.least)


def integral(samples: Sequence[tuple[float, float | None]], start: float, end: float, least: int) -> float | None:
    """Joules between two moments from (moment, watts) in order, or None where too little is known."""
    known = [(at, watts) for at, watts in samples if watts is not None]
    if len(known) < max(1, least) or len(known) < len(samples):
        return None
    points = [(start, known[0][1]), *known, (end, known[-1][1])]
    return sum((t - s) * (p + q) / 2 for (s, p), (t, q) in pairwise(points))


@dataclass(frozen=True)
class NoMeter:
    """There is no energy counter here, and why."""

    reason: str


def _cuda_synchronize() -> None:
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def nvml_meter(nvml: Any = None) -> EnergyMeter | NoMeter:
    """The total-energy counter (millijoules) of the first GPU CUDA would see."""
    nvml = open_nvml() if nvml is None else nvml
    if isinstance(nvml, str):
        return NoMeter(nvml)
    gpus = detect_gpus(nvml)
    if not gpus.visible:
        return NoMeter(gpus.reason)
    if gpus.visible[0].is_instance:
        return NoMeter("a MIG instance has no energy counter of its own")
    try:
        handle = handle_of(nvml, gpus.visible[0])
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        return NoMeter(f"this GPU has no energy counter: {error}")

    def read() -> list[float] | None:
        try:
            return [nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000]
        except nvml.NVMLError:
            return None

    return CounterMeter("NVML total energy", read, settle=_cuda_synchronize)


def rapl_meter(root: Path = Path("/")) -> EnergyMeter | NoMeter:
    """RAPL's package domains (microjoules). They need read permission, which distributions give to root only."""
    zones = [
        zone
        for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        if re.fullmatch(r"intel-rapl:\d+", zone.name) and read_text(zone / "name").startswith("package")
    ]
    if not zones:
        return NoMeter("no energy counter")

    def read() -> list[float] | None:
        texts = [read_text(zone / "energy_uj") for zone in zones]
        return [int(text) * 1e-6 for text in texts] if all(text.isdigit() for text in texts) else None

    if read() is None:
        return NoMeter("the RAPL energy counter cannot be read by this user")
    ranges = [read_text(zone / "max_energy_range_uj") for zone in zones]
    return CounterMeter("RAPL packages", read, wraps_at=[int(r) * 1e-6 if r.isdigit() else None for r in ranges])


def pmic_meter(model: str) -> EnergyMeter | NoMeter:
    """The rails the Pi 5's PMIC measures, together. What has no rail of its own (USB devices, losses) is not seen."""
    if pi.power_w() is None:
        return NoMeter(f"{model.partition(' Rev ')[0]} does not measure the power of its rails")
    return PowerMeter("PMIC rails", pi.power_w)


def energy_meter(device: Device, root: Path = Path("/")) -> EnergyMeter | NoMeter:
    """What measures a device: NVML a GPU, the PMIC a Raspberry Pi, RAPL any other CPU."""
    if device == "cuda":
        return nvml_meter()
    board = detect_board(root)
    return pmic_meter(board.model) if board and board.is_raspberry_pi else rapl_meter(root)
