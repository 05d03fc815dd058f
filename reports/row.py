"""A row: everything the board and the export show of one contender at one case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from archbench.cells import ContenderNote, Metric, Scalar, Span, Status
from archbench.reports.imports.measured import is_address
from archbench.reports.proofs import Proof

MEASURED, IMPORTED = "measured", "imported"  # by us, by another tool or somebody else


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the leaderboard. ``rank`` is None where the row is not ranked."""

    machine: str
    commit: str
    track: str
    case: str
    contender: str
    status: Status
    reason: str = ""
    rank: tuple[int, int] | None = None
    baseline: str = ""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    limit_fraction: float | None = None
    limit_kind: str | None = None
    control: Metric | None = None
    host: Mapping[str, Scalar] = field(default_factory=dict)
    reproduce: str = ""
    # what the pages need beside the export's fields
    date: str = ""  # of the commit, ISO 8601
    run: str = ""
    version: str = ""  # of the track's series
    note: ContenderNote = field(default_factory=ContenderNote)
    energy_trust: str | None = None
    series: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)  # curves: loss over step
    spans: Sequence[Span] = ()  # a timeline of one call
    samples: Mapping[str, Sequence[float | None]] = field(default_factory=dict)  # a metric's values by seed
    origin: str = MEASURED  # or IMPORTED
    quality: str = ""  # the metric that ranks, where it is not the time
    verified: Proof | None = None  # that its run came signed by its machine

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        return (self.machine, self.commit, self.track, self.case, self.contender)

    @property
    def source(self) -> str:
        """Where an imported row was published, where that is a web address."""
        found = self.host.get("source")
        return str(found) if self.origin == IMPORTED and is_address(found) else ""

    @property
    def ranking(self) -> str:
        """The ratio to the baseline that ranks: of the times, or of a quality."""
        return f"{self.quality}_ratio" if self.quality else "slowdown"

    @property
    def quality_name(self) -> str:
        """The quality in words: "test error"."""
        return self.quality.replace("_", " ")

    @property
    def group(self) -> tuple[str, str, str, str, str, str]:
        """Rows that are ranked together: their slowdowns are against the same baseline."""
        return (self.machine, self.commit, self.track, self.version, self.case, self.baseline)


def is_crowded(row: Row) -> bool:
    """Whether neighbours used the cores the case wants: the row says so, and its ratio may be off either way."""
    return row.status == "ok" and bool(row.reason)


def is_rankable(row: Row) -> bool:
    """Measured against the baseline, with an interval, and answering the track's question."""
    against = row.metrics.get(row.ranking)
    measured = against is not None and against.ci is not None and against.ci[0] > 0
    return row.status == "ok" and row.note.differs is None and measured and bool(row.baseline)
