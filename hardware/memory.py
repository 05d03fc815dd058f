"""The kernel's page size, and what it swaps to: facts of memory that change how fast a board is.

A Raspberry Pi 5 has pages of 16 KiB by default, others of 4. Swap on compressed memory (zram) costs CPU time, on an SD
card a hundred times that.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import msgspec

from archbench.formatting import size
from archbench.hardware.cgroup import read_text

_MMC = "179"  # the kernel's major number of SD cards and eMMC


class Swap(msgspec.Struct, frozen=True):
    """One place the kernel swaps to. ``kind`` is "zram", "file" or "partition"."""

    kind: str
    size_bytes: int
    used_bytes: int
    on_card: bool  # on an SD card or eMMC


def page_bytes(root: Path = Path("/")) -> int | None:
    """Bytes of a page of this kernel, or None where it does not say."""
    try:
        with (root / "proc/self/smaps").open(encoding="ascii", errors="replace") as file:
            match = re.search(r"^KernelPageSize:\s*(\d+) kB", file.read(2000), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def _is_on_card(path: str, mounts: str) -> bool:
    """Whether a file lies on a card, by /proc/self/mountinfo: the last of the deepest mounts above it counts."""
    if path.startswith("/dev/"):
        return path.startswith("/dev/mmcblk")
    device, deepest = "", -1
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) > 4 and PurePosixPath(path).is_relative_to(fields[4]):
            depth = len(PurePosixPath(fields[4]).parts)
            if depth >= deepest:
                device, deepest = fields[2], depth
    return device.partition(":")[0] == _MMC


def swaps(root: Path = Path("/")) -> list[Swap]:
    """What /proc/swaps lists."""
    found = []
    mounts = read_text(root / "proc/self/mountinfo")
    for line in read_text(root / "proc/swaps").splitlines()[1:]:
        fields = line.split()
        if len(fields) < 5 or not (fields[-3].isdigit() and fields[-2].isdigit()):
            continue
        path, kind = fields[0], fields[-4]
        if path.startswith("/dev/zram"):
            kind = "zram"
        found.append(Swap(kind, int(fields[-3]) * 1024, int(fields[-2]) * 1024, _is_on_card(path, mounts)))
    return found


def in_words(found: list[Swap]) -> str:
    """``zram 1.91 GiB, file 512 MiB on a card``; empty where there is none."""
    mebibyte = 1 << 20  # the kernel leaves the page with the header out: 1020 MiB would be said of 1024
    whole = [(s, size(round(s.size_bytes / mebibyte) * mebibyte)) for s in found]
    return ", ".join(f"{s.kind} {much}{' on a card' if s.on_card else ''}" for s, much in whole)
