"""The history of other projects' benchmarks: a million points as columns.

A *series* is one benchmark at one parameter combination in one environment on one machine. Its points lie together,
ordered by the date of their commits, so everything a page says of a series is arithmetic on a slice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from archbench.cells import Status
from archbench.reports.asv_tree import MEANING, ODD, AsvFile, Floats, Layout

METRICS = {
    "time": ("latency_s", "s"),
    "timeraw": ("latency_s", "s"),
    "mem": ("peak_bytes", "B"),
    "peakmem": ("peak_bytes", "B"),
}
Own = Callable[[Layout], NDArray[np.bool_]]


class Series(NamedTuple):
    """What is measured over and over."""

    benchmark: str
    machine: str
    environment: str
    parameters: tuple[str, ...]

    @property
    def case(self) -> str:
        return ", ".join(self.parameters) or "-"


@dataclass(frozen=True)
class Source:
    """The file a point is from."""

    machine: str
    commit: str
    environment: str
    date_ms: float
    params: Mapping[str, Any]

    @property
    def date(self) -> str:
        """ISO 8601, empty where the file has none."""
        if not self.date_ms:
            return ""
        try:
            return datetime.fromtimestamp(self.date_ms / 1000, UTC).isoformat(timespec="seconds")
        except (OverflowError, ValueError, OSError):
            return ""


@dataclass(frozen=True, eq=False)
class Archive:
    """Columns with an entry per point. Those of ``series[i]`` are ``bounds[i]`` to ``bounds[i + 1]``, oldest first."""

    series: Sequence[Series]
    bounds: NDArray[np.int64]
    sources: Sequence[Source]
    source: NDArray[np.int32]  # which file a point is from
    value: Floats  # NaN where there is no number
    low: Floats
    high: Floats
    n: NDArray[np.int64]
    code: NDArray[np.uint8]
    reasons: Mapping[int, str]  # of the odd points
    units: Mapping[str, tuple[str, str]]  # benchmark -> metric and unit

    def __len__(self) -> int:
        return len(self.value)

    def slice(self, series: int) -> slice:
        return slice(int(self.bounds[series]), int(self.bounds[series + 1]))

    def status(self, point: int) -> tuple[Status, str]:
        """The status of a point and its reason."""
        code = self.code[point]
        return MEANING[code] if code != ODD else ("crashed", self.reasons[point])

    def by_benchmark(self) -> Iterator[tuple[str, range]]:
        """Benchmarks in order, each with its series."""
        start = 0
        for i in range(1, len(self.series) + 1):
            if i == len(self.series) or self.series[i].benchmark != self.series[start].benchmark:
                yield self.series[start].benchmark, range(start, i)
                start = i


_NONE = np.empty(0)
EMPTY = Archive([], np.zeros(1, dtype=np.int64), [], _NONE.astype(np.int32), _NONE, _NONE, _NONE,
                _NONE.astype(np.int64), _NONE.astype(np.uint8), {}, {})  # fmt: skip


def metric_of(benchmark: str, described: Mapping[str, Any]) -> tuple[str, str]:
    """The metric and unit of a benchmark by what ``benchmarks.json`` says of it, else by its name as asv does."""
    kind = described.get("type")
    if not isinstance(kind, str):
        match = re.match(r"(timeraw|time|peakmem|mem)_", benchmark.rsplit(".", 1)[-1])
        kind = match[1] if match else "track"
    unit = described.get("unit")
    return METRICS.get(kind, ("value", unit if isinstance(unit, str) else ""))


class Part(NamedTuple):
    """A file and which series its points belong to."""

    file: AsvFile
    ids: NDArray[np.int32]
    kept: NDArray[np.bool_] | slice  # points of other projects' benchmarks


def build(files: Iterable[tuple[str, AsvFile]], benchmarks: Mapping[str, Mapping[str, Any]], own: Own) -> Archive:
    """Gather the points of ``(machine, file)`` that ``own`` does not claim. The first file of a commit counts."""
    sources: list[Source] = []
    ids: dict[Series, int] = {}
    seen: dict[tuple[str, str, Layout], NDArray[np.int32]] = {}
    others: dict[Layout, NDArray[np.bool_] | slice] = {}
    parts: list[Part] = []
    for machine, file in files:
        layout = file.layout
        if layout not in others:
            mask = ~own(layout)
            others[layout] = slice(None) if mask.all() else mask
        place = (machine, file.environment, layout)
        if place not in seen:
            keys = (Series(name, machine, file.environment, parameters) for name, parameters in layout.keys)
            seen[place] = np.array([ids.setdefault(key, len(ids)) for key in keys], dtype=np.int32)
        parts.append(Part(file, seen[place], others[layout]))
        sources.append(Source(machine, file.commit, file.environment, file.date_ms, file.params))
    return _ordered(list(ids), sources, parts, benchmarks)


def _ordered(
    found: list[Series], sources: list[Source], parts: list[Part], benchmarks: Mapping[str, Mapping[str, Any]]
) -> Archive:
    def column(pick: Callable[[AsvFile], NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([pick(part.file)[part.kept] for part in parts])

    if not parts:
        return EMPTY
    series = np.concatenate([part.ids[part.kept] for part in parts])
    lengths = [len(part.ids[part.kept]) for part in parts]
    source = np.repeat(np.arange(len(parts), dtype=np.int32), lengths)
    order = sorted(range(len(found)), key=lambda i: (found[i][:3], i))  # by name, then as asv orders the parameters
    rank = np.empty(len(found), dtype=np.int64)
    rank[order] = np.arange(len(found))
    dates: dict[str, float] = {}
    for file in sources:
        dates.setdefault(file.commit, file.date_ms)
    when = {commit: i for i, commit in enumerate(sorted(dates, key=lambda commit: (dates[commit], commit)))}
    moment = np.array([when[file.commit] for file in sources], dtype=np.int64)
    key = rank[series] * len(when) + moment[source]
    by_key = np.argsort(key, kind="stable")
    kept = by_key[np.diff(key[by_key], prepend=-1) != 0]
    counts = np.bincount(rank[series[kept]], minlength=len(found))
    known = np.flatnonzero(counts)  # a series of our own suites has no point here
    names = [found[order[i]] for i in known]
    code = column(lambda file: file.code)[kept]
    return Archive(
        series=names,
        bounds=np.concatenate(([0], np.cumsum(counts[known]))),
        sources=sources,
        source=source[kept],
        value=column(lambda file: file.value)[kept],
        low=column(lambda file: file.low)[kept],
        high=column(lambda file: file.high)[kept],
        n=column(lambda file: file.n)[kept],
        code=code,
        reasons=_reasons(parts, lengths, np.flatnonzero(code == ODD), kept),
        units={name: metric_of(name, benchmarks.get(name, {})) for name in {key.benchmark for key in names}},
    )


def _reasons(parts: list[Part], lengths: list[int], odd: NDArray[np.int64], kept: NDArray[np.int64]) -> dict[int, str]:
    """The reason of each odd point by its place in the archive; ``kept`` says where it was in the files."""
    starts = np.concatenate(([0], np.cumsum(lengths)))
    found: dict[int, str] = {}
    for point, before in zip(odd.tolist(), kept[odd].tolist(), strict=True):
        index = int(np.searchsorted(starts, before, side="right")) - 1
        part = parts[index]
        place = int(np.arange(len(part.ids))[part.kept][before - starts[index]])
        found[point] = part.file.reasons[place]
    return found
