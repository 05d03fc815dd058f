"""What would spoil a run before it starts, each with its reason and what mends it.

A board measures itself unattended: a weak supply, a warm case, a governor that saves power or a clock that lost its day
gives rows that look like any other. So a run is refused, in words. ``archbench run --force`` measures all the same and
the obstacles stand in every row; who has asked already, with limits of its own, passes it too.

Most of it is asked of boards alone. A server has a supply that holds, somebody else's governor, and a container has no
network time of its own; what harms there as well is a disk that is full and a clock that is years behind.

Source: https://www.raspberrypi.com/documentation/computers/config_txt.html (limits of temperature)
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import psutil

from archbench.formatting import size
from archbench.hardware import pi
from archbench.hardware.board import Board, detect_board, governors
from archbench.hardware.load import cpu_temperature
from archbench.hardware.memory import swaps

MIN_FREE_BYTES = 256 << 20  # asv's files, the run's own and a compiler's scratch
BELOW_LIMIT_K = 10.0  # a run adds heat: a board that begins closer to its limit reaches it
BUSY = 0.25  # one of four cores
LOOK_S = 0.5
LOOKS = 6  # what has just ended, an installer for example, gets three seconds
LEAST_SWAPPED = 16 << 20  # less are pages of services that sleep
UNSYNCHRONISED_S = 16.0  # the kernel's error when nobody disciplines its clock; systemd asks the same
WRITTEN = 1767225600.0  # 2026-01-01: this file is younger

_MEND_GOVERNOR = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
_MEND_CLOCK = "sudo timedatectl set-ntp true, and wait until timedatectl says it is synchronized"
_MEND_DISK = "sudo apt-get clean && sudo journalctl --vacuum-size=50M, or a larger disk"
_MEND_FIRMWARE = "sudo apt install raspi-utils; sudo usermod -aG video $USER, and log in again"


class Obstacle(msgspec.Struct, frozen=True):
    """One reason not to measure now. ``mend`` is a command, or what to do."""

    kind: str  # "under-voltage", "heat", "firmware", "governor", "disk", "clock", "swap", "load"
    reason: str
    mend: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}. To mend it: {self.mend}"


def fact(found: Sequence[Obstacle]) -> str:
    """What a row says of obstacles that were overruled: ``governor: the cores run under ondemand; ...``."""
    return "; ".join(f"{obstacle.kind}: {obstacle.reason}" for obstacle in found)


def preflight(
    root: Path = Path("/"),
    *,
    folders: Sequence[Path] = (),
    min_free_bytes: int = MIN_FREE_BYTES,
    max_temperature_c: float | None = None,
) -> list[Obstacle]:
    """Everything that stands in the way of measuring now, worst first; takes up to three seconds on a busy board.

    ``folders`` are those that will be written to; they need not exist yet. ``max_temperature_c`` is 10 below where the
    board is slowed down, unless given.
    """
    board = detect_board(root)
    found = [*_disk(folders, min_free_bytes), *_clock(board)]
    if board is None:
        return found
    firmware = _firmware(board) if board.is_raspberry_pi else ()
    return [*firmware, *_heat(board, root, max_temperature_c), *_governor(root), *found, *_swap(root), *_load()]


def _disk(folders: Sequence[Path], least: int) -> Iterator[Obstacle]:
    seen = set()
    for folder in folders:
        place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        device = place.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        space = os.statvfs(place)
        free = space.f_bavail * space.f_frsize
        if space.f_flag & os.ST_RDONLY:
            reason = f"the file system of {folder} can only be read; a card does that when it fails"
            yield Obstacle("disk", reason, "dmesg --level=err,warn, then sudo mount -o remount,rw or another card")
        elif free < least:
            reason = f"{size(free)} are free for {folder}, a run wants {size(least)}"
            yield Obstacle("disk", reason, _MEND_DISK)


class _Timex(ctypes.Structure):
    """The head of the kernel's ``struct timex``; what follows is not looked at."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        *((name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")),
        ("rest", ctypes.c_char * 256),
    )


def clock_error_s() -> float | None:
    """The most the clock is off by the kernel's own account, or None where it gives none. Asking changes nothing."""
    if sys.platform != "linux":
        return None
    asked = _Timex()
    if ctypes.CDLL(None).adjtimex(ctypes.byref(asked)) < 0:  # a container may not be allowed to ask
        return None
    microseconds: int = asked.maxerror
    return microseconds * 1e-6


def _clock(board: Board | None) -> Iterator[Obstacle]:
    now = time.time()
    error_s = clock_error_s() if board else None
    if now < WRITTEN:
        yield Obstacle("clock", f"the clock says {time.strftime('%Y-%m-%d', time.gmtime(now))}", _MEND_CLOCK)
    elif error_s is not None and error_s >= UNSYNCHRONISED_S:
        yield Obstacle("clock", "the clock is not synchronised: results would be dated at random", _MEND_CLOCK)


def _firmware(board: Board) -> Iterator[Obstacle]:
    bits = pi.throttle_bits()
    if bits is None:
        reason = "the firmware does not answer vcgencmd get_throttled: nobody would see that the board is slowed down"
        yield Obstacle(
            "firmware", reason, "sudo apt install raspi-utils && sudo usermod -aG video $USER, and log in again"
        )
        return
    if bits & pi.WEAK:
        reason = "the supply gives less than 4.63 V now"
        yield Obstacle("under-voltage", reason, "the maker's own supply and a short cable, fewer USB devices")
    hot = bits & (pi.HEAT if bits & pi.WEAK else pi.NOW)  # under-voltage caps and throttles as well
    if hot:
        yield Obstacle("heat", f"the firmware slows the board down now: {pi.in_words(hot)}", _cool(board))


def _cool(board: Board) -> str:
    return "let it cool (vcgencmd measure_temp)" + ("" if board.cooler else ", and give it a fan or a larger heat sink")


def soft_limit_c(model: str) -> float:
    """Degrees from which the firmware slows the board down: 80, but 60 on the 3 B+ and its relatives."""
    return 60.0 if re.search(r"\b3 Model [AB] Plus\b", model) else 80.0


def _heat(board: Board, root: Path, most: float | None) -> Iterator[Obstacle]:
    limit, now = soft_limit_c(board.model), cpu_temperature(root)
    most = limit - BELOW_LIMIT_K if most is None else most
    if now is not None and now > most:
        reason = f"{now:.0f} °C before the run, {most:.0f} are allowed: from {limit:.0f} on the board is slowed down"
        yield Obstacle("heat", reason, _cool(board))


def _governor(root: Path) -> Iterator[Obstacle]:
    wrong = [name for name in governors(root) if name != "performance"]
    if wrong:
        reason = f"the cores run under {', '.join(wrong)}: their clock follows the load with a delay"
        yield Obstacle("governor", reason, _MEND_GOVERNOR)


def _swap(root: Path) -> Iterator[Obstacle]:
    used = sum(swap.used_bytes for swap in swaps(root) if swap.on_card)
    if used >= LEAST_SWAPPED:
        reason = f"{size(used)} of memory lie in swap on a card"
        yield Obstacle("swap", reason, "end what takes the memory, then sudo swapoff -a && sudo swapon -a")


def busy() -> float:
    """Share of the machine's cores that are busy while this process sleeps: the least of a few looks."""
    least = 1.0
    for _ in range(LOOKS):
        least = min(least, psutil.cpu_percent(interval=LOOK_S) / 100)
        if least <= BUSY:
            break
    return least


def _load() -> Iterator[Obstacle]:
    share = busy()
    if share > BUSY:
        reason = f"other processes keep {share:.0%} of the cores busy"
        yield Obstacle("load", reason, "end what ps -eo pcpu,comm --sort=-pcpu | head shows")
