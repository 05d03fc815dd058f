"""Single-board computers: Raspberry Pi, Jetson and others that carry a device tree."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import msgspec

from archbench.hardware.cgroup import read_text
from archbench.names import slugify

# Virtual machines on Arm have a device tree too; theirs names no board.
_NO_BOARD = ("linux,dummy-virt", "QEMU")


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """A board by its device tree. ``firmware`` is its date and hash on a Raspberry Pi."""

    model: str
    firmware: str = ""
    governor: str = ""

    @property
    def family(self) -> str:
        """``raspberry-pi-5`` for "Raspberry Pi 5 Model B Rev 1.0"; the model without its revision for others."""
        pi = re.match(r"Raspberry Pi (\d+|Zero 2)", self.model)
        if pi:
            return f"raspberry-pi-{slugify(pi[1])}"
        if "Orin Nano" in self.model:
            return "jetson-orin-nano"
        return slugify(re.sub(r"\bRev [\d.]+$|\bDeveloper Kit\b", "", self.model))


def vcgencmd(*arguments: str) -> str:
    """What the Raspberry Pi's firmware answers; empty on other machines and where it may not be asked."""
    try:
        done = subprocess.run(["vcgencmd", *arguments], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _firmware(root: Path) -> str:
    """``2025/05/08 15:13:17 version 69471177``: when the firmware was built, and its commit."""
    lines = vcgencmd("version").splitlines() if root == Path("/") else []
    version = next((line for line in lines if line.startswith("version")), "")
    if version:
        return f"{lines[0]} {version}"
    return read_text(root / "proc/device-tree/chosen/bootloader/version")


def detect_board(root: Path = Path("/")) -> Board | None:
    """The board below ``root``, or None on a machine whose device tree names none."""
    model = read_text(root / "proc/device-tree/model") or read_text(root / "sys/firmware/devicetree/base/model")
    if not model or model.startswith(_NO_BOARD):
        return None
    return Board(
        model=model,
        firmware=_firmware(root),
        governor=read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    )
