"""What the firmware of a Raspberry Pi says: what holds it back, its clock, and the power of the Pi 5's rails.

The firmware, not the kernel, decides how fast a Raspberry Pi runs: ``scaling_cur_freq`` says 2.4 GHz while the firmware
runs the cores at 1.5. So it is asked itself, with ``vcgencmd``. ``get_throttled`` has what holds the board back now in
bits 0 to 3, and in bits 16 to 19 what has held it back since boot. Those stay set: of them only what is new belongs to
a measurement, and a short slow-down after an earlier one is seen only by looking while it lasts.

The PMIC of the Pi 5 measures voltage and current of the rails behind it. Its numbering says nothing of which belong
together, the name of the rail does.

Source: https://www.raspberrypi.com/documentation/computers/os.html#vcgencmd
"""

from __future__ import annotations

import re
import subprocess
import threading

HOLDS_BACK = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
WEAK, HEAT, NOW = 0b0001, 0b1000, 0b1111
SINCE_BOOT = 16  # bits 16 to 19 repeat bits 0 to 3 and stay set until the next boot
# Asking takes a few milliseconds, a thousandth of one core; what holds a board back lasts for seconds.
POLL_S = 2.0

# " VDD_CORE_A current(7)=0.75012000A", "EXT5V_V volt=5.10268V", "VDD_CORE_V=0.8750V"
_CHANNEL = re.compile(r"^\s*(\w+)_([AV])(?:\s+\w+(?:\(\d+\))?)?=([\d.]+)[AV]?\s*$", re.MULTILINE)


def vcgencmd(*arguments: str) -> str:
    """What the Raspberry Pi's firmware answers; empty on other machines and where it may not be asked."""
    try:
        done = subprocess.run(["vcgencmd", *arguments], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def bits_of(output: str) -> int | None:
    """The bits of ``get_throttled``; None where the firmware did not answer it."""
    match = re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", output.strip())
    return int(match[1], 16) if match else None


def in_words(bits: int) -> str:
    """What bits 0 to 3 say holds the board back; empty where nothing does."""
    return ", ".join(text for bit, text in HOLDS_BACK.items() if bits >> bit & 1)


def held_back(before: int, after: int, between: int = 0) -> int:
    """Bits 0 to 3 of what held the board back: at either end, seen in between, or noted by the firmware meanwhile."""
    new = (after & ~before) >> SINCE_BOOT
    return (before | between | after | new) & NOW


def hertz_of(output: str) -> float | None:
    """The rate of ``measure_clock``: 2400023808.0 for ``frequency(0)=2400023808``."""
    match = re.fullmatch(r"frequency\(\d+\)=(\d+)", output.strip())
    return float(match[1]) if match and int(match[1]) else None


def rails_w(output: str) -> dict[str, float]:
    """Watts of each rail of ``pmic_read_adc`` that has both its voltage and its current; in either format of it."""
    volts: dict[str, float] = {}
    amperes: dict[str, float] = {}
    for rail, kind, value in _CHANNEL.findall(output):
        try:
            (volts if kind == "V" else amperes)[rail] = float(value)
        except ValueError:  # "5..1V": a line that was cut
            continue
    return {rail: volts[rail] * amperes[rail] for rail in volts if rail in amperes}


def throttle_bits() -> int | None:
    return bits_of(vcgencmd("get_throttled"))


def clock_hz() -> float | None:
    return hertz_of(vcgencmd("measure_clock", "arm"))


def power_w() -> float | None:
    """Watts of all rails together, or None where there is no PMIC that measures them."""
    rails = rails_w(vcgencmd("pmic_read_adc"))
    return sum(rails.values()) if rails else None


class Throttle:
    """Looks at the bits at ``start`` and ``stop``, and in between every ``POLL_S``; nothing runs on other machines."""

    def __init__(self, every_s: float = POLL_S) -> None:
        self._every_s = every_s
        self._done = threading.Event()
        self._between = 0
        self._poll: threading.Thread | None = None

    def start(self) -> None:
        self._before = throttle_bits()
        if self._before is not None:
            self._poll = threading.Thread(target=self._look, daemon=True)
            self._poll.start()

    def _look(self) -> None:
        while not self._done.wait(self._every_s):
            self._between |= throttle_bits() or 0

    def stop(self) -> str:
        """What held the board back in between, in words; empty where nothing did, or where nobody knows."""
        if self._poll is None or self._before is None:
            return ""
        self._done.set()
        self._poll.join()
        after = throttle_bits()
        return in_words(held_back(self._before, self._before if after is None else after, self._between))
