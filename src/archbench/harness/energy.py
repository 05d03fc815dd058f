"""Energy per call: the call is repeated while a hardware counter runs, because one call is too short to meter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from archbench.hardware.meters import EnergyMeter, energy_meter
from archbench.track import Device

WINDOW_S = 1.0  # counters of NVML and RAPL advance every 1 to 100 ms: one second keeps their step below a tenth


def energy_of(call: Callable[[], Any], device: Device, latency_s: float) -> float | None:
    """Joules of one call, or None where this machine has no energy counter. Never an estimate."""
    meter = energy_meter(device)
    if not isinstance(meter, EnergyMeter):
        return None
    calls = max(1, math.ceil(WINDOW_S / latency_s))
    with meter.measure() as reading:
        for _ in range(calls):
            call()
    return None if reading.joules is None else reading.joules / calls
