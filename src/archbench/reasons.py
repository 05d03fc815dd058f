"""Why there is no number, in words that fit a table: what foreign code raised or wrote, cut and made legible."""

from __future__ import annotations

from archbench.names import legible

LONGEST = 500  # characters: an exception may carry a whole tensor, and a run file is read line by line


def short(text: str) -> str:
    """At most ``LONGEST`` characters of a text, nothing in it that a file or a terminal could not hold."""
    shown = legible(text[: LONGEST + 1])
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 3] + "..."


def first_line(error: BaseException) -> str:
    """The first line of an exception's message; its ``__str__`` is as foreign as what raised it."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - whatever it raises, there is no message
        return "its message cannot be read"
    return text[: 2 * LONGEST].strip().partition("\n")[0]


def told(error: BaseException) -> str:
    """``ValueError: what it said``."""
    return short(f"{type(error).__name__}: {first_line(error)}")
