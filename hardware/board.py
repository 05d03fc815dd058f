"""Single-board computers: Raspberry Pi, Jetson and others that carry a device tree."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from archbench.hardware import pi
from archbench.hardware.cgroup import read_text
from archbench.names import slugify

# Virtual machines on Arm have a device tree too; theirs names no board.
_NO_BOARD = ("linux,dummy-virt", "QEMU")


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """A board by its device tree. ``firmware`` and ``bootloader`` are date and hash on a Raspberry Pi."""

    model: str
    firmware: str = ""
    bootloader: str = ""
    governor: str = ""
    cooler: str = ""
    throttled: str = ""  # what holds it back, and has since boot, in the firmware's bits: "0x50000"

    @property
    def is_raspberry_pi(self) -> bool:
        return self.model.startswith("Raspberry Pi")

    @property
    def family(self) -> str:
        """``raspberry-pi-5`` for "Raspberry Pi 5 Model B Rev 1.0"; the model without its revision for others."""
        ours = re.match(r"Raspberry Pi (\d+|Zero 2)", self.model)
        if ours:
            return f"raspberry-pi-{slugify(ours[1])}"
        if "Orin Nano" in self.model:
            return "jetson-orin-nano"
        return slugify(re.sub(r"\bRev [\d.]+$|\bDeveloper Kit\b", "", self.model))


def _built(output: str) -> str:
    """``2025/05/08 15:13:17 version 69471177 (release) (embedded)`` of ``version`` and ``bootloader_version``."""
    lines = output.splitlines()
    version = next((line for line in lines if line.startswith("version")), "")
    return f"{lines[0].strip()} {version}" if version else ""


def _cooler(root: Path) -> str:
    """The fan the kernel controls: ``pwm-fan`` is the Pi 5's. One that is merely plugged in is seen by nobody."""
    kinds = [read_text(device / "type") for device in sorted((root / "sys/class/thermal").glob("cooling_device*"))]
    return next((kind for kind in kinds if "fan" in kind), "")


def fan_rpm(root: Path = Path("/")) -> int | None:
    """Turns a minute of the first fan that has a counter, or None."""
    for counter in sorted((root / "sys/class/hwmon").glob("hwmon*/fan1_input")):
        text = read_text(counter)
        if text.isdigit():
            return int(text)
    return None


def governors(root: Path = Path("/")) -> list[str]:
    """The frequency governors of all cores, each once."""
    policies = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
    return sorted(set(filter(None, map(read_text, policies))))


def detect_board(root: Path = Path("/")) -> Board | None:
    """The board below ``root``, or None on a machine whose device tree names none."""
    model = read_text(root / "proc/device-tree/model") or read_text(root / "sys/firmware/devicetree/base/model")
    if not model or model.startswith(_NO_BOARD):
        return None
    kept = read_text(root / "proc/device-tree/chosen/bootloader/version")
    bits = pi.throttle_bits()
    return Board(
        model=model,
        firmware=_built(pi.vcgencmd("version")) or kept,
        bootloader=_built(pi.vcgencmd("bootloader_version")) or kept,
        governor=", ".join(governors(root)),
        cooler=_cooler(root),
        throttled="" if bits is None else f"{bits:#x}",
    )
