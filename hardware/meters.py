"""Peak memory and energy of a call. What cannot be measured is absent, with a reason; nothing is estimated."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from archbench.hardware.cpu import read_text
from archbench.hardware.gpu import detect_gpus, handle_of, open_nvml
from archbench.track import Device


def peak_host_bytes(call: Callable[[], Any], root: Path = Path("/")) -> int:
    """Resident memory a call adds at its highest, in bytes, its result included.

    Linux: freed memory is returned to the system first (``malloc_trim``), the kernel's high-water mark is reset, the
    call runs once. Seen: every page the call touches, of any library. Not seen: pages it takes from memory that was
    resident already, such as scratch a library kept from an earlier call. Elsewhere a thread samples the resident set.
    """
    gc.collect()
    status, reset = root / "proc/self/status", root / "proc/self/clear_refs"
    if platform.system() == "Linux":
        with contextlib.suppress(AttributeError, OSError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
        try:
            reset.write_text("5")
        except OSError:
            return _sampled_peak(call)
        before = _status_bytes(status, "VmRSS")
        result = call()
        peak = _status_bytes(status, "VmHWM")
        del result
        return max(0, peak - before)
    return _sampled_peak(call)


def _status_bytes(status: Path, key: str) -> int:
    match = re.search(rf"^{key}:\s*(\d+) kB", status.read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"{status} has no {key}")
    return int(match[1]) * 1024


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
    """Filled when the measured block ends; None when the counter failed inside it."""

    joules: float | None = None


@dataclass(frozen=True)
class EnergyMeter:
    """A hardware energy counter. ``read`` returns joules since some start; it may wrap at ``wraps_at``."""

    source: str
    read: Callable[[], list[float]]  # one value per counter
    wraps_at: list[float] = field(default_factory=list)
    settle: Callable[[], None] = lambda: None  # wait for device work before reading

    @contextmanager
    def measure(self) -> Iterator[Reading]:
        """Energy of the block, summed over the counters."""
        reading = Reading()
        self.settle()
        before = self.read()
        yield reading
        self.settle()
        after = self.read()
        total = 0.0
        for i, (a, b) in enumerate(zip(before, after, strict=True)):
            if b < a and i >= len(self.wraps_at):
                return  # a counter that ran backwards says nothing
            total += b - a if b >= a else b + self.wraps_at[i] - a
        reading.joules = total


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
    try:
        handle = handle_of(nvml, gpus.visible[0])
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        return NoMeter(f"this GPU has no energy counter: {error}")
    return EnergyMeter(
        "NVML total energy",
        lambda: [nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000],
        settle=_cuda_synchronize,
    )


def rapl_meter(root: Path = Path("/")) -> EnergyMeter | NoMeter:
    """RAPL's package domains (microjoules). They need read permission, which distributions give to root only."""
    zones = [
        zone
        for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        if re.fullmatch(r"intel-rapl:\d+", zone.name) and read_text(zone / "name").startswith("package")
    ]
    if not zones:
        return NoMeter("no energy counter")
    if not all(read_text(zone / "energy_uj").isdigit() for zone in zones):
        return NoMeter("the RAPL energy counter cannot be read by this user")
    return EnergyMeter(
        "RAPL packages",
        lambda: [int(read_text(zone / "energy_uj")) * 1e-6 for zone in zones],
        wraps_at=[int(read_text(zone / "max_energy_range_uj") or 0) * 1e-6 for zone in zones],
    )


def energy_meter(device: Device, root: Path = Path("/")) -> EnergyMeter | NoMeter:
    """The counter that measures a device: NVML for a GPU, RAPL for a CPU."""
    return nvml_meter() if device == "cuda" else rapl_meter(root)
