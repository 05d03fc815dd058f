"""Single-board computers: Raspberry Pi and others that carry a device tree."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec

from archbench.hardware.cpu import read_text
from archbench.names import slugify


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """A board by its device tree. ``firmware`` is the bootloader's date and hash on a Raspberry Pi."""

    model: str
    firmware: str = ""
    governor: str = ""

    @property
    def family(self) -> str:
        """``raspberry-pi-5`` for "Raspberry Pi 5 Model B Rev 1.0"; the whole model as a slug for others."""
        pi = re.match(r"Raspberry Pi (\d+|Zero 2)", self.model)
        if pi:
            return f"raspberry-pi-{slugify(pi[1])}"
        if "Orin Nano" in self.model:
            return "jetson-orin-nano"
        return slugify(self.model)


def detect_board(root: Path = Path("/")) -> Board | None:
    """The board below ``root``, or None on a machine without a device-tree model."""
    model = read_text(root / "proc/device-tree/model") or read_text(root / "sys/firmware/devicetree/base/model")
    if not model:
        return None
    firmware = ""
    if root == Path("/") and shutil.which("vcgencmd"):
        done = subprocess.run(["vcgencmd", "version"], capture_output=True, text=True, timeout=5)
        lines = done.stdout.splitlines()
        firmware = " ".join(lines[:1] + [line for line in lines if line.startswith("version")])
    return Board(
        model=model,
        firmware=firmware or read_text(root / "proc/device-tree/chosen/bootloader/version"),
        governor=read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    )
