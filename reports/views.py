"""What the pages show, computed from rows: winners, tables, summaries. Pure data, no HTML."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archbench.cells import Metric, Run, Scalar
from archbench.formatting import quantity, ratio, seconds, significant
from archbench.reports.charts import Chart, RatioScale, scaling
from archbench.reports.export import rank_text
from archbench.reports.rank import band, log_interval, overall
from archbench.reports.rows import Results, Row, is_rankable
from archbench.stats import Interval

HTML_ROWS = 300  # rows of a table that are real HTML; the rest is drawn by script from inlined JSON
OWN_METRICS = ("latency_s", "slowdown", "peak_bytes", "error", "energy_j")


@dataclass(frozen=True)
class Line:
    """A row as a table prints it. ``sort`` holds the numbers behind the texts, None at the end of every order."""

    row: Row
    rank: str
    time: str
    slowdown: str
    strip: tuple[float, float, float] | None  # lower end, centre, upper end on 0..100
    limit: str
    limit_share: float | None
    memory: str
    error: str
    energy: str
    others: str
    facets: Mapping[str, str]

    @property
    def sort(self) -> dict[str, float | str | None]:
        m = self.row.metrics
        numbers = {key: m[name].value if name in m else None for key, name in _SORTED.items()}
        return {
            "rank": float(self.row.rank[0]) if self.row.rank else None,
            "contender": self.row.contender,
            "limit": self.row.limit_fraction,
            "status": self.row.status,
            **numbers,
        }


_SORTED = {"time": "latency_s", "slowdown": "slowdown", "memory": "peak_bytes", "error": "error", "energy": "energy_j"}


@dataclass(frozen=True)
class CaseTable:
    """One case on one machine: who is how fast."""

    case: str
    lines: list[Line]
    aside: list[Line]  # contenders that compute a different function: timed, never ranked
    noise: str  # the A/A band, as text
    one: float  # where 1x is on the strips


@dataclass(frozen=True)
class Standing:
    """A contender over all cases."""

    place: str
    first: bool  # nobody is surely faster
    name: str
    summary: str
    mean: str
    coverage: str
    complete: bool


@dataclass(frozen=True)
class Board:
    """One track on one machine at one commit."""

    machine: str
    commit: str
    date: str
    dirty: bool
    tables: list[CaseTable]
    standings: list[Standing]
    chart: Chart | None
    facets: dict[str, list[str]]
    versions: str

    @property
    def count(self) -> int:
        return sum(len(table.lines) + len(table.aside) for table in self.tables)


@dataclass(frozen=True)
class Winner:
    """What the index says about a track on a machine."""

    machine: str
    track: str
    names: list[str]  # several: nobody can tell them apart
    margin: str
    firsts: str
    rows: int


def text_of(metrics: Mapping[str, Metric], name: str) -> str:
    metric = metrics.get(name)
    return "" if metric is None else quantity(metric.value, metric.unit)


def line(row: Row, scale: RatioScale, axes: Mapping[str, Scalar]) -> Line:
    slowdown, time = row.metrics.get("slowdown"), row.metrics.get("latency_s")
    strip = None
    if slowdown is not None:
        low, high = slowdown.ci or (slowdown.value, slowdown.value)
        strip = (scale.at(low), scale.at(slowdown.value), scale.at(high))
    others = ", ".join(
        f"{n} {quantity(m.value, m.unit)}" for n, m in sorted(row.metrics.items()) if n not in OWN_METRICS
    )
    return Line(
        row=row,
        rank=rank_text(row.rank),
        time=seconds(time.value) if time else "",
        slowdown=ratio(slowdown.value, slowdown.ci) if slowdown else "",
        strip=strip,
        limit=f"{row.limit_fraction:.0%}" if row.limit_fraction is not None else "",
        limit_share=None if row.limit_fraction is None else round(100 * min(1.0, row.limit_fraction), 1),
        memory=text_of(row.metrics, "peak_bytes"),
        error=significant(row.metrics["error"].value, 2) if "error" in row.metrics else "",
        energy=text_of(row.metrics, "energy_j") + (f" ({row.energy_trust})" if row.energy_trust else ""),
        others=others,
        facets={name: str(value) for name, value in axes.items()},
    )


def newest_commits(rows: Sequence[Row]) -> list[str]:
    """Commits from newest to oldest: by commit date, then by the last run that measured them."""
    latest: dict[str, tuple[str, str]] = {}
    for row in rows:
        latest[row.commit] = max(latest.get(row.commit, ("", "")), (row.date, row.run))
    return sorted(latest, key=lambda commit: (latest[commit], commit), reverse=True)


def newest(rows: Sequence[Row]) -> list[Row]:
    """The rows of the newest commit."""
    commit = newest_commits(rows)[0]
    return [row for row in rows if row.commit == commit]


def board(rows: Sequence[Row], cases: Mapping[str, Mapping[str, Scalar]]) -> Board:
    """The tables of one track on one machine at one commit; ``rows`` are those and no others."""
    first = rows[0]
    by_case: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_case[row.case].append(row)
    order = [slug for slug in cases if slug in by_case] + sorted(set(by_case) - set(cases))
    tables = []
    for slug in order:
        group = by_case[slug]
        scale = RatioScale.over(group)
        width = band([row.control for row in group if row.control is not None])
        lines = [line(row, scale, cases.get(slug, {})) for row in group]
        tables.append(
            CaseTable(
                case=slug,
                lines=[entry for entry in lines if entry.row.note.differs is None],
                aside=[entry for entry in lines if entry.row.note.differs is not None],
                noise=f"±{100 * (2.718281828459045**width - 1):.1f} %" if any(row.control for row in group) else "",
                one=scale.at(1.0),
            )
        )
    facets: dict[str, set[str]] = defaultdict(set)
    for slug in order:
        for name, value in cases.get(slug, {}).items():
            facets[name].add(str(value))
    newest = max(rows, key=lambda row: row.run)
    versions = ", ".join(
        f"{key.removeprefix('version.')} {value}"
        for key, value in sorted(newest.host.items())
        if key.startswith("version.")
    )
    return Board(
        machine=first.machine,
        commit=first.commit,
        date=first.date,
        dirty=any(row.host.get("dirty") is True for row in rows),
        tables=tables,
        standings=standings(rows),
        chart=scaling(cases, rows),
        facets={name: sorted(values, key=_natural) for name, values in sorted(facets.items()) if len(values) > 1},
        versions=versions,
    )


def _natural(text: str) -> tuple[bool, float, str]:
    return (not text.isdigit(), float(text) if text.isdigit() else 0.0, text)


def standings(rows: Sequence[Row]) -> list[Standing]:
    """Contenders over all cases; those that lack cases are listed, not ranked."""
    notes = {row.contender: row.note for row in rows}
    rankable = [row for row in rows if is_rankable(row)]
    cases = sorted({row.case for row in rankable})
    by_contender: dict[str, dict[str, Interval]] = defaultdict(dict)
    for row in rankable:
        by_contender[row.contender][row.case] = log_interval(row.metrics["slowdown"])
    found = []
    for entry in overall(by_contender, cases):
        shown = entry.mean.exp() if entry.mean else None
        found.append(
            Standing(
                place=rank_text(entry.rank),
                first=entry.rank is not None and entry.rank[0] == 1,
                name=entry.name,
                summary=notes[entry.name].summary,
                mean=ratio(shown.value, (shown.lo, shown.hi)) if shown else "not ranked: cases are missing",
                coverage=f"{entry.covered} of {len(cases)}",
                complete=shown is not None,
            )
        )
    return found


def winner(rows: Sequence[Row], machine: str, track: str) -> Winner:
    """The best of a track on a machine, or the several nobody can tell apart."""
    table = standings(rows)
    names = [s.name for s in table if s.first]
    leader = next((s for s in table if s.complete), None)
    firsts = ""
    if leader is not None:
        cases = {row.case for row in rows if is_rankable(row)}
        first = sum(1 for row in rows if row.contender == leader.name and row.rank is not None and row.rank[0] == 1)
        firsts = f"first or tied in {first} of {len(cases)} cases"
    return Winner(machine, track, names, leader.mean if leader else "", firsts, len(rows))


@dataclass(frozen=True)
class MachineView:
    """A machine's page."""

    name: str
    facts: list[tuple[str, str]]
    ceilings: list[tuple[str, str, str, str, str, str]]
    runs: list[Run]
    tracks: list[str]


def machine_view(results: Results, name: str) -> MachineView:
    """Facts and ceilings of the newest run on a machine; asv's own facts where there is no run of ours."""
    runs = [run for run in results.runs if run.machine == name]
    known = results.machines.get(name, {})
    facts: dict[str, Scalar] = {k: v for k, v in known.items() if isinstance(v, str) and k != "machine"}
    ceilings: list[tuple[str, str, str, str, str, str]] = []
    if runs:
        facts = {**runs[-1].host, "device": runs[-1].device, "profile": runs[-1].profile or ""}
        for c in runs[-1].ceilings:
            share = f"{c.value / c.datasheet:.0%}" if c.datasheet else ""
            sheet = quantity(c.datasheet, c.unit) if c.datasheet else ""
            threads = "" if c.threads is None else str(c.threads)
            ceilings.append((c.name, c.dtype or "", threads, quantity(c.value, c.unit), sheet, share))
    shown = [
        (key, quantity(value, "B") if key.endswith("bytes") and isinstance(value, int) else str(value))
        for key, value in facts.items()
        if value not in ("", None)
    ]
    tracks = sorted({row.track for row in results.rows if row.machine == name})
    return MachineView(name, shown, ceilings, list(reversed(runs)), tracks)
