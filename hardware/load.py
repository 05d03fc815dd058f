"""What else happened on the machine while a cell was measured: load, steal, other processes, heat, throttling."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from archbench.cells import Scalar
from archbench.hardware import pi
from archbench.hardware.board import fan_rpm
from archbench.hardware.cgroup import read_text
from archbench.hardware.gpu import detect_gpus, handle_of, open_nvml

# Reasons that mean "slower than this card can be"; the power cap is how a GPU runs under load and is not one.
_GPU_THROTTLE = {0x08: "hardware slowdown", 0x20: "too hot", 0x40: "too hot (hardware)", 0x80: "power brake"}
_CPU_ZONES = ("x86_pkg_temp", "cpu", "soc")  # kinds of thermal zones that follow the CPU, best first
# Share of the watched time a GPU may be held back by heat before its numbers are not its own any more.
_HELD_BACK = 0.01


def gpu_throttle(reasons: int) -> str:
    """NVML's clocks-event reasons that cost speed beyond the power cap, in words."""
    return ", ".join(text for bit, text in _GPU_THROTTLE.items() if reasons & bit)


def cpu_temperature(root: Path = Path("/")) -> float | None:
    """Degrees Celsius of the CPU's thermal zone (the first zone where none says so), or None."""
    readings = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        text, kind = read_text(zone / "temp"), read_text(zone / "type").lower()
        if text.lstrip("-").isdigit():
            rank = next((i for i, mark in enumerate(_CPU_ZONES) if mark in kind), len(_CPU_ZONES))
            readings.append((rank, zone.name, int(text) / 1000))
    return min(readings)[2] if readings else None


def cpu_clock(root: Path = Path("/")) -> float | None:
    """Current clock of CPU 0 in hertz, or None. A Raspberry Pi's firmware knows it better than the kernel."""
    measured = pi.clock_hz()
    if measured is not None:
        return measured
    text = read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    return int(text) * 1000.0 if text.isdigit() else None


def tree_cpu_s() -> float:
    """CPU seconds of this process, its finished children and its living descendants."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended between the list and the question
            spent = child.cpu_times()
            total += spent.user + spent.system + getattr(spent, "children_user", 0.0)
            total += getattr(spent, "children_system", 0.0)
    return total


class _GpuSensor:
    """The card of the first GPU CUDA would see; every question may go unanswered."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._handle: Any = None
        visible = detect_gpus(nvml).visible
        if visible:
            with contextlib.suppress(nvml.NVMLError):
                self._handle = handle_of(nvml, visible[0])

    def ask(self, question: Callable[[Any, Any], Any]) -> Any:
        if self._handle is None:
            return None
        try:
            return question(self._nvml, self._handle)
        except self._nvml.NVMLError:
            return None

    def temperature_c(self) -> int | None:
        found: int | None = self.ask(lambda n, h: n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU))
        return found

    def clock_hz(self) -> float | None:
        megahertz = self.ask(lambda n, h: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM))
        return None if megahertz is None else megahertz * 1e6

    def reasons(self) -> int:
        return int(self.ask(lambda n, h: n.nvmlDeviceGetCurrentClocksEventReasons(h)) or 0)

    def held_back_s(self) -> float | None:
        """Seconds this card's heat has held its clock back since the driver was loaded."""
        policy = self.ask(lambda n, h: n.nvmlDeviceGetViolationStatus(h, n.NVML_PERF_POLICY_THERMAL))
        return None if policy is None else policy.violationTime * 1e-9


def _sensor(nvml: Any) -> _GpuSensor | None:
    nvml = open_nvml() if nvml is None else nvml
    return None if isinstance(nvml, str) else _GpuSensor(nvml)


def _now(root: Path, gpu: _GpuSensor | None) -> dict[str, Scalar]:
    seen: dict[str, Scalar | None] = {
        "load1": round(os.getloadavg()[0], 2),
        "temperature_c": cpu_temperature(root),
        "cpu_clock_hz": cpu_clock(root),
        "fan_rpm": fan_rpm(root),
        "gpu_temperature_c": gpu.temperature_c() if gpu else None,
        "gpu_clock_hz": gpu.clock_hz() if gpu else None,
    }
    return {key: value for key, value in seen.items() if value is not None}


def snapshot(root: Path = Path("/"), nvml: Any = None) -> dict[str, Scalar]:
    """The machine at this moment: ``load1``, temperatures, clocks, ``throttle``; only what is available."""
    gpu = _sensor(nvml)
    throttle = (gpu_throttle(gpu.reasons()) if gpu else "") or pi.in_words(pi.throttle_bits() or 0)
    return _now(root, gpu) | ({"throttle": throttle} if throttle else {})


class Watch:
    """Looks at the machine at ``start`` and at ``stop``; ``stop`` returns what it saw, only what is available.

    ``steal_fraction`` is the share of the machine's CPU time the hypervisor gave to others. ``other_cpu_fraction`` is
    the share that was busy outside this process and its children. Clocks and temperatures are those at the end.
    ``throttle`` says in words what held the machine back in between; it is absent where nothing did. A Raspberry Pi is
    asked every two seconds meanwhile, because the first slow-down since boot hides the next from what it notes.
    """

    def __init__(self, root: Path = Path("/"), nvml: Any = None) -> None:
        self._root = root
        self._gpu = _sensor(nvml)

    def start(self) -> None:
        self._pi = pi.Throttle()
        self._pi.start()
        self._reasons = self._gpu.reasons() if self._gpu else 0
        self._held_back = self._gpu.held_back_s() if self._gpu else None
        self._times, self._own, self._wall = psutil.cpu_times(), tree_cpu_s(), time.monotonic()

    def stop(self) -> dict[str, Scalar]:
        wall, own, now = time.monotonic() - self._wall, tree_cpu_s() - self._own, psutil.cpu_times()
        spent = {kind: getattr(now, kind) - getattr(self._times, kind) for kind in now._fields}
        # The kernel counts guests in user and nice as well.
        total = sum(spent.values()) - spent.get("guest", 0.0) - spent.get("guest_nice", 0.0)
        idle, steal = spent["idle"] + spent.get("iowait", 0.0), spent.get("steal", 0.0)
        seen = _now(self._root, self._gpu)
        if total > 0:
            seen["steal_fraction"] = round(min(1.0, max(0.0, steal / total)), 4)
            seen["other_cpu_fraction"] = round(min(1.0, max(0.0, (total - idle - steal - own) / total)), 4)
        board = self._pi.stop()
        throttle = self._gpu_throttle(wall) or board
        if throttle:
            seen["throttle"] = throttle
        return seen

    def _gpu_throttle(self, wall_s: float) -> str:
        if self._gpu is None:
            return ""
        # The reasons at the end are those of a card that has just gone idle: the counter knows what was in between.
        reasons, held_back = self._reasons | self._gpu.reasons(), self._gpu.held_back_s()
        if held_back is not None and self._held_back is not None and held_back - self._held_back > _HELD_BACK * wall_s:
            reasons |= 0x20
        return gpu_throttle(reasons)
