"""What else happened on the machine while a cell was measured: load, steal, other processes, heat, throttling."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from archbench.cells import Scalar
from archbench.hardware.cpu import read_text
from archbench.hardware.gpu import open_nvml

# Reasons that mean "slower than this card can be"; the power cap is how a GPU runs under load and is not one.
_GPU_THROTTLE = {0x08: "hardware slowdown", 0x20: "too hot", 0x40: "too hot (hardware)", 0x80: "power brake"}
_PI_THROTTLE = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}


def pi_throttle(output: str) -> str:
    """What ``vcgencmd get_throttled`` says is happening now (bits 0 to 3), in words."""
    match = re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", output.strip())
    bits = int(match[1], 16) if match else 0
    return ", ".join(text for bit, text in _PI_THROTTLE.items() if bits >> bit & 1)


def gpu_throttle(reasons: int) -> str:
    """NVML's clocks-event reasons that cost speed beyond the power cap, in words."""
    return ", ".join(text for bit, text in _GPU_THROTTLE.items() if reasons & bit)


def cpu_temperature(root: Path = Path("/")) -> float | None:
    """Degrees Celsius of the first thermal zone, or None."""
    text = read_text(root / "sys/class/thermal/thermal_zone0/temp")
    return int(text) / 1000 if text.lstrip("-").isdigit() else None


def cpu_clock(root: Path = Path("/")) -> float | None:
    """Current clock of CPU 0 in hertz, or None."""
    text = read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    return int(text) * 1000.0 if text.isdigit() else None


def _own_cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Watch:
    """Looks at the machine at ``start`` and at ``stop``; ``stop`` returns what it saw, only what is available.

    ``other_cpu_fraction`` is the share of the machine's CPU time that neither this process nor idling used.
    """

    def __init__(self, root: Path = Path("/"), nvml: Any = None) -> None:
        self._root = root
        self._nvml = open_nvml() if nvml is None else nvml

    def start(self) -> None:
        self._times, self._own, self._wall = psutil.cpu_times(), _own_cpu_s(), time.monotonic()

    def stop(self) -> dict[str, Scalar]:
        now, own = psutil.cpu_times(), _own_cpu_s() - self._own
        total = sum(now) - sum(self._times) - (getattr(now, "guest", 0.0) - getattr(self._times, "guest", 0.0))
        idle = (now.idle - self._times.idle) + getattr(now, "iowait", 0.0) - getattr(self._times, "iowait", 0.0)
        steal = getattr(now, "steal", 0.0) - getattr(self._times, "steal", 0.0)
        seen: dict[str, Scalar] = {"load1": round(os.getloadavg()[0], 2)}
        if total > 0:
            seen["steal_fraction"] = round(max(0.0, steal / total), 4)
            seen["other_cpu_fraction"] = round(max(0.0, (total - idle - steal - own) / total), 4)
        temperature, clock = cpu_temperature(self._root), cpu_clock(self._root)
        if temperature is not None:
            seen["temperature_c"] = temperature
        if clock is not None:
            seen["cpu_clock_hz"] = clock
        throttle = self._gpu(seen) or self._pi()
        if throttle:
            seen["throttle"] = throttle
        return seen

    def _gpu(self, seen: dict[str, Scalar]) -> str:
        nvml = self._nvml
        if isinstance(nvml, str):
            return ""
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(0)
            seen["gpu_temperature_c"] = nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            seen["gpu_clock_hz"] = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6
            return gpu_throttle(int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)))
        except nvml.NVMLError:
            return ""

    def _pi(self) -> str:
        if not shutil.which("vcgencmd"):
            return ""
        done = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=5)
        return pi_throttle(done.stdout)
