"""Neighbours: other processes on the cores a case wants.

The paired ratio stands a neighbour that takes from both sides alike. It does not where a call runs on every core: each
of its parallel steps ends with its slowest thread, so what a neighbour costs depends on how many steps a call has. The
A/A control, the same call twice, cannot see that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import psutil

from archbench.cells import Scalar
from archbench.track import Place

CROWDED = 0.10  # share of the machine's CPU time that others may use beyond what the case leaves free
PATIENCE_S = 5.0
_LOOK_S = 0.5


def crowding(host: Mapping[str, Scalar], place: Place, cores: int | None = None) -> str:
    """What the reader of a cell must know of its neighbours; empty where they did not matter.

    ``host`` holds the cell's ``threads`` and the ``other_cpu_fraction`` of its ``Watch``.
    """
    other, threads = host.get("other_cpu_fraction"), host.get("threads")
    if place.device != "cpu" or not isinstance(other, float) or not isinstance(threads, int):
        return ""
    left_free = max(0.0, 1 - threads / (cores or os.cpu_count() or threads))
    if other <= left_free + CROWDED:
        return ""
    return f"other processes used {other:.0%} of the machine's cores while it was measured"


def wait_for_quiet() -> None:
    """Wait, a few seconds at most, until the machine is idle but for what one may tolerate."""
    end = time.monotonic() + PATIENCE_S
    while psutil.cpu_percent(interval=_LOOK_S) / 100 > CROWDED and time.monotonic() < end:
        pass
