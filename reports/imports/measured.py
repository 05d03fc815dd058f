"""What an importer hands over, and how a file of samples becomes a number."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from archbench.cells import Cell, Metric, Run, Scalar, TrackNote
from archbench.stats import median_interval

ENVIRONMENT = "imported from "
NO_COMMIT = "0" * 40  # git's own word for it
ADDRESS = re.compile(r"https?://[!#-;=?-~]{3,1000}")  # no spaces, no quotes, no angle brackets
LEAST_SAMPLES = 6  # the range of fewer covers the median with less than 95 %


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a file of another tool says, in our words."""

    track: TrackNote
    cells: list[Cell]
    started: str
    commit: str = NO_COMMIT
    commit_date: str = ""
    dirty: bool = False
    device: str = "cpu"
    host: dict[str, Scalar] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def is_imported(run: Run) -> bool:
    """Whether another tool measured it; its commits may be those of another project."""
    return run.environment.startswith(ENVIRONMENT)


def is_address(text: object) -> bool:
    """Whether a link may lead there: a web address of printable characters, not longer than one can be."""
    return isinstance(text, str) and ADDRESS.fullmatch(text) is not None


def median_seconds(samples: list[float]) -> Metric:
    """The median with its interval, where there are enough samples for one. Raises ValueError."""
    found = median_interval(samples)
    return Metric(found.value, "s", (found.lo, found.hi) if found.n >= LEAST_SAMPLES else None, found.n)
