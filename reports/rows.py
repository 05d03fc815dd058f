"""Rows: one per machine, commit, track, case and contender; everything the board and the export show.

Rows come from our cells. asv's numbers of our own suites count where no cell is (an old tree, a lost run file); asv's
numbers of other projects become rows with the benchmark as track and the environment as contender.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from archbench.cells import Cell, ContenderNote, Metric, Run, Scalar, Status, TrackNote
from archbench.reports.asv_tree import AsvFile, Point, parse
from archbench.reports.load import Files, Problem, Unreadable, no_results, read_object, relative, survey
from archbench.reports.meaning import check_asv
from archbench.reports.rank import band, log_interval, ranks
from archbench.reports.run_files import RunFile, drop_replays, read_run

OUR_SUITE = re.compile(r"(?P<track>\w+)\.\w+\.track_(?P<metric>latency|slowdown|peak_bytes)")
OUR_METRICS = {"latency": ("latency_s", "s"), "slowdown": ("slowdown", "ratio"), "peak_bytes": ("peak_bytes", "B")}
ASV_METRICS = {
    "time": ("latency_s", "s"),
    "timeraw": ("latency_s", "s"),
    "mem": ("peak_bytes", "B"),
    "peakmem": ("peak_bytes", "B"),
}


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

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        return (self.machine, self.commit, self.track, self.case, self.contender)

    @property
    def group(self) -> tuple[str, str, str, str, str]:
        """Rows that are ranked together."""
        return (self.machine, self.commit, self.track, self.version, self.case)


@dataclass
class Results:
    """A results folder, read."""

    rows: list[Row]
    runs: list[Run]
    tracks: dict[str, TrackNote]
    machines: dict[str, dict[str, Any]]
    sources: list[str]
    problems: list[Problem]

    @property
    def count(self) -> int:
        return len(self.rows)


def load(folder: Path) -> Results:
    """Read a results folder into ranked rows, sorted. Raises NoResults where there is nothing in it."""
    files = survey(folder)
    problems = files.problems
    runs: list[RunFile] = []
    sources: list[str] = []
    for machine, path in files.runs:
        name = relative(path, folder)
        try:
            run = read_run(path, name, machine)
        except Unreadable as error:
            problems.append(Problem(name, str(error)))
            continue
        problems += run.problems
        runs.append(run)
        sources.append(name)
    runs.sort(key=lambda r: (r.run.started, r.run.run))
    problems += drop_replays(runs)
    asv_files: list[tuple[str, AsvFile]] = []
    for machine, path in files.asv:
        name = relative(path, folder)
        try:
            asv_files.append((machine, parse(read_object(path, check_asv), machine)))
        except Unreadable as error:
            problems.append(Problem(name, str(error)))
            continue
        sources.append(name)
    tracks = {name: note for run in runs for name, note in run.tracks.items()}  # the newest run's word counts
    found = {row.key: row for run in runs for row in _run_rows(run)}  # the newest run's cell counts
    for row in _asv_rows(asv_files, files, tracks):
        found.setdefault(row.key, row)
    if not found and not problems:
        raise no_results(folder)
    return Results(
        rows=sorted(_ranked(found.values()), key=_order),
        runs=[run.run for run in runs],
        tracks=tracks,
        machines=files.machines,
        sources=sorted(sources),
        problems=sorted(set(problems)),
    )


def reproduce(track: str, contender: str, case: str) -> str:
    """The command that repeats a row."""
    return f"archbench run {track}/{contender} --case {case}"


def _run_rows(file: RunFile) -> Iterable[Row]:
    run = file.run
    shared: dict[str, Scalar] = {**run.host, "device": run.device, "dirty": run.dirty, "environment": run.environment}
    shared |= {f"version.{name}": value for name, value in run.versions.items()}
    for cell in file.cells:
        note = file.tracks.get(cell.track)
        yield Row(
            machine=run.machine,
            commit=run.commit,
            track=cell.track,
            case=cell.case,
            contender=cell.contender,
            status=cell.status,
            reason=cell.reason,
            baseline=cell.baseline,
            metrics={name: _rounded(metric) for name, metric in cell.metrics.items()},
            limit_fraction=None if cell.limit_fraction is None else _six(cell.limit_fraction),
            limit_kind=cell.limit_kind,
            control=None if cell.control is None else _rounded(cell.control),
            host=shared | cell.host | _measured_at(cell),
            reproduce=reproduce(cell.track, cell.contender, cell.case),
            date=run.commit_date,
            run=run.run,
            version=note.version if note else "",
            note=note.contenders.get(cell.contender, ContenderNote()) if note else ContenderNote(),
            energy_trust=cell.energy_trust,
            series=cell.series,
        )


def _six(value: float) -> float:
    """Six significant digits, more than a measurement has: pages, exports and tables then hold the same number."""
    return value if value.is_integer() else float(f"{value:.6g}")


def _rounded(metric: Metric) -> Metric:
    ends = None if metric.ci is None else (_six(metric.ci[0]), _six(metric.ci[1]))
    return Metric(_six(metric.value), metric.unit, ends, metric.n)


def _measured_at(cell: Cell) -> dict[str, Scalar]:
    return {"measured": cell.started} if cell.started else {}


def _asv_rows(asv_files: Iterable[tuple[str, AsvFile]], files: Files, tracks: Mapping[str, TrackNote]) -> Iterable[Row]:
    ours: dict[tuple[str, str, str, str, str], Row] = {}
    for machine, file in asv_files:
        host: dict[str, Scalar] = {"environment": file.environment}
        host |= {k: v for k, v in file.params.items() if k != "machine" and isinstance(v, str) and v}
        date = _date(file.date_ms)
        for point in file.points:
            match = OUR_SUITE.fullmatch(point.benchmark)
            described = files.benchmarks.get(point.benchmark, {})
            if match and described.get("param_names") == ["case", "contender"] and len(point.parameters) == 2:
                if point.status == "unsupported":
                    continue  # NaN in our suites: not selected in a partial run, or for other machines
                row = _our_row(machine, file, point, match, host, date, tracks)
                ours[row.key] = _joined(ours.get(row.key), row)
            else:
                yield _foreign_row(machine, file, point, described, host, date)
    yield from ours.values()


def _our_row(
    machine: str,
    file: AsvFile,
    point: Point,
    match: re.Match[str],
    host: Mapping[str, Scalar],
    date: str,
    tracks: Mapping[str, TrackNote],
) -> Row:
    case, contender = (text.strip("'\"") for text in point.parameters)
    track = match["track"]
    note = tracks.get(track)
    name, unit = OUR_METRICS[match["metric"]]
    return Row(
        machine=machine,
        commit=file.commit,
        track=track,
        case=case,
        contender=contender,
        status=point.status,
        reason=point.reason,
        baseline=note.baseline if note else "",
        metrics=_metric(point, name, unit),
        host=host,
        reproduce=reproduce(track, contender, case),
        date=date,
        note=note.contenders.get(contender, ContenderNote()) if note else ContenderNote(),
    )


def _joined(known: Row | None, row: Row) -> Row:
    """The metrics of one cell arrive as separate asv benchmarks; a failed one keeps its status."""
    if known is None:
        return row
    if known.status != "ok":
        return known
    if row.status != "ok":
        return row
    return replace(known, metrics={**known.metrics, **row.metrics})


def _foreign_row(
    machine: str, file: AsvFile, point: Point, described: Mapping[str, Any], host: Mapping[str, Scalar], date: str
) -> Row:
    kind = described.get("type")
    if not isinstance(kind, str):
        kind = re.match(r"(timeraw|time|peakmem|mem)_", point.benchmark.rsplit(".", 1)[-1])
        kind = kind[1] if kind else "track"
    unit = described.get("unit") if isinstance(described.get("unit"), str) else ""
    name, unit = ASV_METRICS.get(kind, ("value", unit or ""))
    return Row(
        machine=machine,
        commit=file.commit,
        track=point.benchmark,
        case=", ".join(point.parameters) or "-",
        contender=file.environment,
        status=point.status,
        reason=point.reason,
        metrics=_metric(point, name, unit),
        host=host,
        date=date,
    )


def _metric(point: Point, name: str, unit: str) -> dict[str, Metric]:
    return {} if point.value is None else {name: Metric(point.value, unit, point.interval, point.n)}


def _date(milliseconds: float) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds") if milliseconds else ""
    except (OverflowError, ValueError, OSError):
        return ""


def _ranked(rows: Iterable[Row]) -> Iterable[Row]:
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    for group in groups.values():
        slowdowns = {row.contender: log_interval(row.metrics["slowdown"]) for row in group if is_rankable(row)}
        found = ranks(slowdowns, band([row.control for row in group if row.control is not None]))
        for row in group:
            yield replace(row, rank=found.get(row.contender))


def is_rankable(row: Row) -> bool:
    """Measured against the baseline, and answering the track's question."""
    return row.status == "ok" and row.note.differs is None and "slowdown" in row.metrics and bool(row.baseline)


def _order(row: Row) -> tuple[object, ...]:
    slowdown = row.metrics.get("slowdown")
    value = slowdown.value if slowdown else float("inf")
    return (
        row.machine,
        row.track,
        row.date,
        row.commit,
        row.case,
        row.rank is None,
        row.rank or (0, 0),
        value,
        row.contender,
    )
