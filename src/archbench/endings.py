"""How a process ends: together with its parent, by a signal that has a name, for want of memory."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """From now on this process is killed when the thread of ``parent`` that started it ends; Linux only.

    Ends at once where that was before we asked.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def killer(code: int) -> str:
    """Which signal a negative exit code stands for; the real-time signals have no names."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def out_of_memory_kills(vmstat: Path = Path("/proc/vmstat")) -> int | None:
    """Processes the kernel has killed for want of memory since boot, limits of control groups included, or None."""
    try:
        found = re.search(r"^oom_kill (\d+)$", vmstat.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
