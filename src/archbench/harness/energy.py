"""Energy per call: the call is repeated while a meter runs, because one call is too short to meter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from archbench.cells import Energy
from archbench.hardware.meters import EnergyMeter, energy_meter
from archbench.track import Device


def energy_of(call: Callable[[], Any], device: Device, latency_s: float) -> Energy | None:
    """What one call takes, and how far to trust it; None where this machine has no meter. Never an estimate."""
    meter = energy_meter(device)
    if not isinstance(meter, EnergyMeter):
        return None
    calls = max(1, math.ceil(meter.window_s / latency_s))
    with meter.measure() as reading:
        for _ in range(calls):
            call()
    return None if reading.joules is None else Energy(reading.joules / calls, meter.source, meter.trust)
