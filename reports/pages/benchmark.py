"""Pages of other projects' benchmarks: a page each with the history of every series, and the list of all of them."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from archbench.formatting import quantity, significant
from archbench.reports import steps
from archbench.reports.archive import Archive, Source
from archbench.reports.asv_tree import OK
from archbench.reports.charts.dense import dense
from archbench.reports.pages import Board, Output, digest
from archbench.reports.pages.html import benchmark_path, render

INDEX = "benchmark/index.html"
MAX_ROWS = 300  # series on a page
MAX_BENCHMARKS = 2000  # in the list
MAX_STEPS = 3  # told of a series, the largest


class Histories:
    """The steps of an archive's series, found when a page asks for them."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self._found: dict[int, list[steps.Change]] = {}

    @cached_property
    def examined(self) -> NDArray[np.bool_]:
        """The series in which steps are looked for."""
        known = self.archive.code == OK
        bounds = np.concatenate(([0], np.cumsum(known)))[self.archive.bounds]
        return steps.chosen(self.archive.value[known], bounds)

    @cached_property
    def stamps(self) -> NDArray[np.uint64]:
        """A number per source that changes with its commit or date."""
        texts = (f"{source.commit} {source.date_ms}".encode() for source in self.archive.sources)
        return np.array([int.from_bytes(hashlib.blake2b(t, digest_size=8).digest(), "big") for t in texts], np.uint64)

    @cached_property
    def odd(self) -> list[int]:
        """The points with a reason of their own."""
        return sorted(self.archive.reasons)

    def changes(self, series: int) -> list[steps.Change]:
        """The changes of level of an examined series, oldest first."""
        if series not in self._found:
            part = self.archive.slice(series)
            weights = steps.weights_of(self.archive.low[part], self.archive.high[part])
            self._found[series] = steps.changes(steps.steps(self.archive.value[part], weights))
        return self._found[series]

    def key(self, name: str, members: range) -> str:
        """A digest of all a benchmark's page is made from."""
        archive = self.archive
        part = slice(int(archive.bounds[members.start]), int(archive.bounds[members.stop]))
        columns = (archive.value, archive.low, archive.high, archive.n, archive.code, self.stamps[archive.source[part]])
        found = hashlib.blake2b(digest_size=16)
        for column in columns[:-1]:
            found.update(column[part].tobytes())
        found.update(columns[-1].tobytes())
        found.update(archive.bounds[members.start : members.stop + 1].tobytes() + self.examined[members].tobytes())
        odd = self.odd[bisect_left(self.odd, part.start) : bisect_left(self.odd, part.stop)]
        reasons = [archive.reasons[point] for point in odd]
        return digest(
            name, archive.units[name], archive.series[members.start : members.stop], reasons, found.hexdigest()
        )


@dataclass(frozen=True)
class Line:
    """A series as a row of its table."""

    case: str
    status: str
    reason: str
    latest: str
    interval: str
    best: str
    best_commit: str
    change: str
    verdict: str  # "faster" or "slower" where the intervals say so
    spark: Markup
    steps: list[str]
    about: str  # where it moved most, of a series that was not examined
    examined: bool


@dataclass(frozen=True)
class Table:
    """The series of one environment on one machine."""

    machine: str
    environment: str
    commit: str
    date: str
    commits: int
    lines: list[Line]


def outputs(board: Board) -> Iterator[Output]:
    archive = board.results.archive
    if not len(archive):
        return
    histories = Histories(archive)
    keys = []
    for name, members in archive.by_benchmark():
        keys.append(histories.key(name, members))
        path = benchmark_path(name)
        yield Output(path, keys[-1], lambda n=name, m=members, p=path: _page(histories, n, m, p))  # type: ignore[misc]
    yield Output(INDEX, digest(keys), lambda: _index(histories))


def _page(histories: Histories, name: str, members: range, path: str) -> bytes:
    shown = members[:MAX_ROWS]
    metric, unit = histories.archive.units[name]
    return render(
        "benchmark.html.j2",
        path,
        name=name,
        metric=metric,
        unit=unit,
        tables=_tables(histories, shown),
        left_out=len(members) - len(shown),
        examined=int(histories.examined[members].sum()),
        series=len(members),
        least=steps.LEAST_CHANGE,
    )


def _tables(histories: Histories, members: Sequence[int]) -> list[Table]:
    archive = histories.archive
    places: dict[tuple[str, str], list[int]] = {}
    for i in members:
        places.setdefault((archive.series[i].machine, archive.series[i].environment), []).append(i)
    found = []
    for (machine, environment), own in places.items():
        last = (archive.sources[archive.source[archive.bounds[i + 1] - 1]] for i in own)
        newest = max(last, key=lambda source: (source.date_ms, source.commit))
        commits = max(int(archive.bounds[i + 1] - archive.bounds[i]) for i in own)
        lines = [_line(histories, i) for i in own]
        found.append(Table(machine, environment, newest.commit, newest.date[:10], commits, lines))
    return found


def _line(histories: Histories, series: int) -> Line:
    archive = histories.archive
    part = archive.slice(series)
    _, unit = archive.units[archive.series[series].benchmark]
    values, low, high = archive.value[part], archive.low[part], archive.high[part]
    known = np.flatnonzero(archive.code[part] == OK)
    status, reason = archive.status(part.stop - 1)
    examined = bool(histories.examined[series])
    moved = histories.changes(series) if examined else []
    drift = None if examined else steps.drift(values)
    latest = interval = best = commit = change = verdict = ""
    if len(known):
        now = int(known[-1])
        latest = quantity(float(values[now]), unit)
        if not np.isnan(low[now]):
            interval = f"{quantity(float(low[now]), unit)} to {quantity(float(high[now]), unit)}"
        first = int(known[np.argmin(values[known])])
        best, commit = quantity(float(values[first]), unit), _source(archive, part.start + first).commit[:8]
    if len(known) > 1:
        now, before = int(known[-1]), int(known[-2])
        change = _percent(_ratio(values, known))
        verdict = "slower" if low[now] > high[before] else "faster" if high[now] < low[before] else ""
    return Line(
        case=archive.series[series].case,
        status=status,
        reason=reason,
        latest=latest,
        interval=interval,
        best=best,
        best_commit=commit,
        change=change,
        verdict=verdict,
        spark=dense(values, f"{len(known)} values", [step.position for step in moved]),
        steps=[_step(archive, part, step) for step in _largest(moved)],
        about=_step(archive, part, drift) if drift else "",
        examined=examined,
    )


def _source(archive: Archive, point: int) -> Source:
    return archive.sources[int(archive.source[point])]


def _ratio(values: NDArray[np.float64], known: NDArray[np.int64]) -> float:
    """The newest number over the one before it; NaN where they have no ratio."""
    before, now = values[known[-2:]].tolist()
    return float(now / before) if before > 0 and now > 0 else math.nan


def _percent(ratio: float) -> str:
    return "" if math.isnan(ratio) else f"{100 * (ratio - 1):+.1f} %"


def _largest(moved: Sequence[steps.Change]) -> list[steps.Change]:
    """The largest steps, in the order of their commits."""
    ranked = sorted(moved, key=_size, reverse=True)[:MAX_STEPS]
    return sorted(ranked, key=lambda step: step.position)


def _size(step: steps.Change) -> float:
    return 0.0 if math.isnan(step.ratio) else abs(math.log(step.ratio))


def _step(archive: Archive, part: slice, step: steps.Change) -> str:
    source = _source(archive, part.start + step.position)
    if math.isnan(step.ratio):
        size = f"from {significant(step.before)} to {significant(step.after)}"
    else:
        size = f"{significant(step.ratio)}×"
    return f"{size} at {source.commit[:8]}{f' ({source.date[:10]})' if source.date else ''}"


@dataclass(frozen=True)
class Entry:
    """A benchmark in the list."""

    name: str
    path: str
    series: int
    commits: int
    change: str  # the largest of its series' latest changes
    step: str  # the largest step
    examined: int


def _index(histories: Histories) -> bytes:
    archive = histories.archive
    found = list(archive.by_benchmark())
    entries = [_entry(histories, name, members) for name, members in found[:MAX_BENCHMARKS]]
    return render(
        "benchmarks.html.j2",
        INDEX,
        entries=entries,
        left_out=len(found) - len(entries),
        points=len(archive),
        series=len(archive.series),
        examined=int(histories.examined.sum()),
    )


def _entry(histories: Histories, name: str, members: range) -> Entry:
    archive = histories.archive
    ratios: list[float] = []
    moved: list[tuple[float, str]] = []
    for i in members:
        part = archive.slice(i)
        known = np.flatnonzero(archive.code[part] == OK)
        if len(known) > 1:
            ratios.append(_ratio(archive.value[part], known))
        if histories.examined[i]:
            moved += [(_size(step), _step(archive, part, step)) for step in histories.changes(i)]
    largest = max((r for r in ratios if not math.isnan(r)), key=lambda r: abs(math.log(r)), default=math.nan)
    return Entry(
        name=name,
        path=benchmark_path(name).removeprefix("benchmark/"),
        series=len(members),
        commits=int(np.diff(archive.bounds[members.start : members.stop + 1]).max()),
        change=_percent(largest),
        step=max(moved, default=(0.0, ""))[1],
        examined=int(histories.examined[members].sum()),
    )
