"""Rows: one per machine, commit, track, case and contender; everything the board and the export show.

Rows come from our cells. asv's numbers of our own suites count where no cell is (an old tree, a lost run file). asv's
numbers of other projects stay columns (``archive.py``); ``all_rows`` shows them as rows, with the benchmark as track
and the environment as contender.
"""

from __future__ import annotations

import gc
import math
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from archbench.cells import CELLS_DIR, Cell, ContenderNote, Metric, Run, Scalar, TrackNote
from archbench.reports.archive import EMPTY, Archive, Source, build
from archbench.reports.asv_tree import OK, AsvFile, Layout, Point
from archbench.reports.cache import Cache, CachedReader, place
from archbench.reports.imports.measured import is_imported
from archbench.reports.load import Files, Problem, Unreadable, no_results, read_bytes, relative, survey
from archbench.reports.meaning import check_metric, date
from archbench.reports.proofs import Proof, Proofs
from archbench.reports.quality import case_on, compared, data_of, facts_of, plain_case, whole, with_data
from archbench.reports.rank import band, log_interval, ranks
from archbench.reports.row import IMPORTED, MEASURED, Row, is_crowded, is_rankable
from archbench.reports.run_files import RunFile, drop_replays, drop_surplus, read_run
from archbench.stats import Interval

OUR_SUITE = re.compile(r"(?P<track>\w+)\.\w+\.track_(?P<metric>latency|slowdown|peak_bytes|quality)")
# Of the time; the quality is named by its track.
OUR_METRICS = {
    "latency": ("latency_s", "s"),
    "slowdown": ("slowdown", "ratio"),
    "peak_bytes": ("peak_bytes", "B"),
}


@dataclass
class Results:
    """A results folder, read."""

    rows: list[Row]  # of our own tracks
    runs: list[Run]
    tracks: dict[str, TrackNote]
    machines: dict[str, dict[str, Any]]
    sources: list[str]
    problems: list[Problem]
    archive: Archive = EMPTY  # other projects' benchmarks
    proofs: dict[tuple[str, str], Proof] = field(default_factory=dict)  # by machine and run

    @property
    def count(self) -> int:
        return len(self.rows) + len(self.archive)

    def all_rows(self) -> Iterator[Row]:
        """Our own tracks' rows, then a row for each point of the archive, made when it is asked for."""
        yield from self.rows
        yield from _archive_rows(self.archive)


def load(folder: Path) -> Results:
    """Read a results folder into ranked rows, sorted. Raises NoResults where there is nothing in it."""
    files = survey(folder)
    problems = files.problems
    proofs = Proofs(files, folder)
    verified: dict[tuple[str, str], Proof] = {}
    runs: list[RunFile] = []
    sources: list[str] = []
    for machine, path in files.runs:
        name = relative(path, folder)
        try:
            run = read_run(path, name, machine)
        except Unreadable as error:
            problems.append(Problem(name, str(error)))
            continue
        try:
            proof = proofs.of(machine, f"{CELLS_DIR}/{path.name}", run.sha256)
        except Unreadable as error:
            problems.append(Problem(name, str(error)))
        else:
            if proof is not None:
                run.verified = verified[machine, run.run.run] = proof
        problems += run.problems
        runs.append(run)
        sources.append(name)
    runs.sort(key=lambda r: (_utc(r.run.started), r.run.run))
    problems += drop_replays(runs)
    problems += drop_surplus(runs)
    asv_files: list[tuple[str, AsvFile]] = []
    with _uncollected(), Cache(place(folder)) as cache:
        reader = CachedReader(cache)
        for machine, path in files.asv:
            name = relative(path, folder)
            try:
                asv_files.append((machine, reader.read(read_bytes(path), machine)))
            except Unreadable as error:
                problems.append(Problem(name, str(error)))
                continue
            sources.append(name)
    # The newest run's word counts, and anybody's who measured before that of an import.
    told_by = sorted(runs, key=lambda run: not is_imported(run.run))
    tracks = {name: note for run in told_by for name, note in run.tracks.items()}
    found = {row.key: row for run in runs for row in _run_rows(run, run.cells)}  # the newest run's cell counts
    told = {(run.run.machine, run.run.commit) for run in runs}
    known = {(row.machine, row.commit, row.track, plain_case(row.case), row.contender) for row in found.values()}
    for row in _asv_rows(asv_files, files, tracks):
        if row.key in known:
            continue
        # Where our run files tell of a commit, what asv calls failed and they do not know was not asked for.
        if row.status == "ok" or (row.machine, row.commit) not in told:
            found.setdefault(row.key, row)
    for run in runs:
        for row in _run_rows(run, run.unfinished):
            found.setdefault(row.key, row)
    archive = build(asv_files, files.benchmarks, lambda layout: _own_points(layout, files))
    if not found and not len(archive) and not problems:
        raise no_results(folder)
    tracks = with_data(tracks, found.values())
    return Results(
        rows=sorted(_ranked(found.values()), key=_order),
        runs=[msgspec.structs.replace(run.run, started=_utc(run.run.started)) for run in runs],
        tracks=tracks,
        machines=files.machines,
        sources=sorted(sources),
        problems=sorted(set(problems)),
        archive=archive,
        proofs=verified,
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: decoding makes many lists and no cycles, and looking for cycles doubles its cost."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def reproduce(track: str, contender: str, case: str) -> str:
    """The command that repeats a row."""
    return f"archbench run {shlex.quote(f'{track}/{contender}')} --case {shlex.quote(case)}"


def _run_rows(file: RunFile, cells: Iterable[Cell]) -> Iterable[Row]:
    run = file.run
    shared: dict[str, Scalar] = {**run.host, "device": run.device, "dirty": run.dirty, "environment": run.environment}
    shared |= {f"version.{name}": value for name, value in run.versions.items()}
    data = data_of(file.cells)
    for cell in cells:
        note = file.tracks.get(cell.track)
        seen = cell.data or data.get((cell.track, cell.case))
        yield Row(
            machine=run.machine,
            commit=run.commit,
            track=cell.track,
            case=case_on(cell.case, seen),
            contender=cell.contender,
            status=cell.status,
            reason=cell.reason,
            baseline=cell.baseline,
            metrics={name: _rounded(metric) for name, metric in whole(cell).items()},
            limit_fraction=None if cell.limit_fraction is None else _six(cell.limit_fraction),
            limit_kind=cell.limit_kind,
            control=None if cell.control is None else _rounded(cell.control),
            host=shared | cell.host | _measured_at(cell) | facts_of(seen),
            reproduce=reproduce(cell.track, cell.contender, cell.case) if cell.baseline else "",  # imported: none
            date=_utc(run.commit_date),
            run=run.run,
            version=note.version if note else "",
            note=note.contenders.get(cell.contender, ContenderNote()) if note else ContenderNote(),
            energy_trust=cell.energy_trust,
            series=cell.series,
            spans=cell.spans,
            samples=cell.samples,
            origin=IMPORTED if is_imported(run) else MEASURED,
            quality=note.quality if note else "",
            verified=file.verified,
        )


def _six(value: float) -> float:
    """Six significant digits, more than a measurement has: pages, exports and tables then hold the same number."""
    return value if value.is_integer() else float(f"{value:.6g}")


def _rounded(metric: Metric) -> Metric:
    ends = None if metric.ci is None else (_six(metric.ci[0]), _six(metric.ci[1]))
    return Metric(_six(metric.value), metric.unit, ends, metric.n)


def _measured_at(cell: Cell) -> dict[str, Scalar]:
    return {"measured": _utc(cell.started)} if cell.started else {}


def _utc(text: str) -> str:
    """A date in one form, so that dates compare as texts; ``check_record`` has seen that it is one."""
    return date(text, "date").astimezone(UTC).isoformat(timespec="seconds") if text else ""


def _own_points(layout: Layout, files: Files) -> NDArray[np.bool_]:
    """Which points of a file are of our own suites."""
    own = [
        OUR_SUITE.fullmatch(name) is not None
        and files.benchmarks.get(name, {}).get("param_names") == ["case", "contender"]
        and all(len(parameters) == 2 for parameters in combinations)
        for name, combinations in zip(layout.benchmarks, layout.combinations, strict=True)
    ]
    return np.repeat(np.array(own, dtype=np.bool_), layout.sizes)


def _asv_rows(asv_files: Iterable[tuple[str, AsvFile]], files: Files, tracks: Mapping[str, TrackNote]) -> Iterable[Row]:
    """Rows of our own suites, where asv's files hold them."""
    found: dict[tuple[str, str, str, str, str], Row] = {}
    own: dict[Layout, list[int]] = {}
    for machine, file in asv_files:
        if file.layout not in own:
            own[file.layout] = np.flatnonzero(_own_points(file.layout, files)).tolist()
        source = Source(machine, file.commit, file.environment, file.date_ms, file.params)
        for i in own[file.layout]:
            point = file.point(i)
            if point.status == "unsupported":
                continue  # NaN in our suites: not selected in a partial run, or for other machines
            row = _our_row(source, point, tracks)
            found[row.key] = _joined(found.get(row.key), row)
    return found.values()


def _host(source: Source) -> dict[str, Scalar]:
    facts = {k: v for k, v in source.params.items() if k != "machine" and isinstance(v, str) and v}
    return {"environment": source.environment, **facts}


def _our_row(source: Source, point: Point, tracks: Mapping[str, TrackNote]) -> Row:
    match = OUR_SUITE.fullmatch(point.benchmark)
    assert match is not None
    case, contender = (text.strip("'\"") for text in point.parameters)
    track = match["track"]
    note = tracks.get(track)
    name, unit = OUR_METRICS.get(match["metric"], (note.quality if note else "", "ratio"))
    status, reason, metrics = point.status, point.reason, {}
    if point.value is not None and name:
        metrics[name] = Metric(point.value, unit, point.interval, point.n)
        try:
            check_metric(name, metrics[name])
        except ValueError as error:
            status, reason, metrics = "crashed", str(error), {}
    return Row(
        machine=source.machine,
        commit=source.commit,
        track=track,
        case=case,
        contender=contender,
        status=status,
        reason=reason,
        baseline=note.baseline if note else "",
        metrics=metrics,
        host=_host(source),
        reproduce=reproduce(track, contender, case),
        date=source.date,
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


def _archive_rows(archive: Archive) -> Iterator[Row]:
    hosts = [_host(source) for source in archive.sources]
    dates = [source.date for source in archive.sources]
    for i, series in enumerate(archive.series):
        name, unit = archive.units[series.benchmark]
        for point in range(archive.bounds[i], archive.bounds[i + 1]):
            source = archive.sources[archive.source[point]]
            status, reason = archive.status(point)
            metrics = {}
            if archive.code[point] == OK:
                low, high = float(archive.low[point]), float(archive.high[point])
                ends = (low, high) if low == low else None
                metrics[name] = Metric(float(archive.value[point]), unit, ends, int(archive.n[point]))
            yield Row(
                machine=series.machine,
                commit=source.commit,
                track=series.benchmark,
                case=series.case,
                contender=series.environment,
                status=status,
                reason=reason,
                metrics=metrics,
                host=hosts[archive.source[point]],
                date=dates[archive.source[point]],
            )


def _ranked(rows: Iterable[Row]) -> Iterable[Row]:
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    for group in map(compared, groups.values()):
        slowdowns = {row.contender: _known(row) for row in group if is_rankable(row)}
        noise = [row.control for row in group if row.control is not None and not row.quality]
        found = ranks(slowdowns, band(noise))
        for row in group:
            yield replace(row, rank=found.get(row.contender))


def _known(row: Row) -> Interval:
    """What a ratio says for the ranks of its case: nothing, where the machine was crowded."""
    found = log_interval(row.metrics[row.ranking])
    crowded = is_crowded(row) and not row.quality  # neighbours make a run slow, not wrong
    return Interval(found.value, -math.inf, math.inf, found.n) if crowded else found


def _order(row: Row) -> tuple[object, ...]:
    against = row.metrics.get(row.ranking)
    value = against.value if against else float("inf")
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
