"""Numbers for people: SI inside, formatted at the edge, three significant digits."""

from __future__ import annotations

import math

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_DECIMAL = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def significant(value: float, digits: int = 3) -> str:
    """``0.01234`` as "0.0123", ``2`` as "2.00", ``1234`` as "1230": no exponent between 0.001 and a million."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    rounded = float(f"{value:.{digits - 1}e}")
    return f"{rounded:.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"


def seconds(value: float) -> str:
    """``0.00123`` as "1.23 ms"."""
    for factor, unit in _SECONDS:
        if value >= factor * 0.9995:
            return f"{significant(value / factor)} {unit}"
    return f"{significant(value / 1e-9)} ns"


def size(value: float) -> str:
    """Bytes in binary units: ``1536`` as "1.50 KiB"."""
    for factor, unit in _BINARY:
        if value >= factor:
            return f"{significant(value / factor)} {unit}"
    return f"{value:.0f} B"


def ratio(value: float, interval: tuple[float, float] | None = None) -> str:
    """``4.1`` as "4.10×", with its interval where there is one: "4.10× (4.05-4.16)"."""
    text = f"{significant(value)}×"
    return text if interval is None else f"{text} ({significant(interval[0])}-{significant(interval[1])})"


def quantity(value: float, unit: str) -> str:
    """A number with its SI unit: seconds, bytes, and anything else with a decimal prefix."""
    if unit == "s":
        return seconds(value)
    if unit == "B":
        return size(value)
    if unit in ("ratio", ""):
        return significant(value)
    for factor, prefix in _DECIMAL:
        if abs(value) >= factor:
            return f"{significant(value / factor)} {prefix}{unit}"
    return f"{significant(value)} {unit}"
