"""asv's result files, versions 1 and 2, of any project, as columns.

asv stores per benchmark a flat list over the product of its parameters. Null is a benchmark that failed, NaN one that
was skipped. What is read here equals what ``asv.results.Results`` reads from the same file; asv itself is not needed.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from archbench.cells import Status
from archbench.reports.load import Unreadable, finite
from archbench.reports.meaning import is_commit

MAX_POINTS = 100_000  # parameter combinations of one benchmark
LARGEST_N = 2.0**53

OK, FAILED, SKIPPED, ODD = range(4)  # what a value is; the reason of an odd one is kept beside the columns
MEANING: tuple[tuple[Status, str], ...] = (
    ("ok", ""),
    ("crashed", "the benchmark failed"),
    ("unsupported", "skipped by the suite"),
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One value of one benchmark at one parameter combination."""

    benchmark: str
    parameters: tuple[str, ...]
    value: float | None
    status: Status
    reason: str
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True, eq=False)
class Layout:
    """The benchmarks of a file and the parameter combinations of each: what its points are, in their order.

    Most files of an archive share one, so what is computed from it is computed once.
    """

    benchmarks: tuple[str, ...]
    combinations: tuple[tuple[tuple[str, ...], ...], ...]

    @cached_property
    def keys(self) -> list[tuple[str, tuple[str, ...]]]:
        """Benchmark and parameters of every point."""
        pairs = zip(self.benchmarks, self.combinations, strict=True)
        return [(name, parameters) for name, found in pairs for parameters in found]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(map(len, self.combinations))

    @cached_property
    def nothing(self) -> tuple[list[None], ...]:
        """A column without values, for each benchmark."""
        return tuple([None] * size for size in self.sizes)

    @cached_property
    def may_be_negative(self) -> NDArray[np.bool_]:
        """The points that are surely neither times nor sizes."""
        tracked = [name.rpartition(".")[2].startswith("track_") for name in self.benchmarks]
        return np.repeat(np.array(tracked, dtype=np.bool_), self.sizes)

    @cached_property
    def digest(self) -> bytes:
        return hashlib.blake2b(self.packed, digest_size=16).digest()

    @cached_property
    def packed(self) -> bytes:
        return msgspec.msgpack.encode((self.benchmarks, self.combinations))


@dataclass(frozen=True, eq=False)
class AsvFile:
    """One commit in one environment on one machine: a column per fact, an entry per point of the layout."""

    commit: str
    environment: str
    date_ms: float
    params: Mapping[str, Any]
    layout: Layout
    value: Floats  # NaN where there is no number
    low: Floats  # both ends of an interval or neither
    high: Floats
    n: NDArray[np.int64]
    code: NDArray[np.uint8]
    reasons: Mapping[int, str]  # of the odd ones

    def points(self) -> list[Point]:
        return [self.point(i) for i in range(len(self.value))]

    def point(self, i: int) -> Point:
        benchmark, parameters = self.layout.keys[i]
        code = self.code[i]
        status, reason = MEANING[code] if code != ODD else ("crashed", self.reasons[i])
        interval = None if math.isnan(self.low[i]) else (float(self.low[i]), float(self.high[i]))
        value = float(self.value[i]) if code == OK else None
        return Point(benchmark, parameters, value, status, reason, interval, int(self.n[i]))


def as_version_2(found: dict[str, Any]) -> dict[str, Any]:
    """Version 1 keeps ``{"result", "params", "stats"}`` or a bare value per benchmark; version 2 columns."""
    if found.get("version", 1) != 1:
        return found
    results: dict[str, list[Any]] = {}
    for name, entry in _mapping(found, "results").items():
        held = entry if isinstance(entry, dict) else {"result": [entry]}
        value, stats = held.get("result"), held.get("stats")
        value = value if isinstance(value, list) else [value]
        stats = stats if isinstance(stats, list) else [stats]
        columns: list[Any] = [value, held.get("params") or [], None]
        for pick in ("ci_99_a", "ci_99_b", "number", "repeat"):
            columns.append([_v1_statistic(s, pick) for s in stats])
        results[name] = columns
    names = ["result", "params", "version", "stats_ci_99_a", "stats_ci_99_b", "stats_number", "stats_repeat"]
    environment = found.get("env_name") or _v1_environment(found)
    return found | {"version": 2, "results": results, "result_columns": names, "env_name": environment}


def _v1_statistic(stats: Any, pick: str) -> Any:
    if not isinstance(stats, dict):
        return None
    if pick.startswith("ci_99"):
        interval = stats.get("ci_99")
        ends = interval if isinstance(interval, list) and len(interval) == 2 else [None, None]
        end = ends[pick.endswith("b")]
        return float(f"{end:.4e}") if isinstance(end, float) else end  # asv keeps five digits when it upgrades a file
    return stats.get(pick)


def _v1_environment(found: dict[str, Any]) -> str:
    parts = [f"py{found.get('python', '')}"]
    for name, value in sorted(_mapping(found, "requirements").items()):
        parts.append(f"{name}{value or ''}")
    return "-".join(parts)


def _mapping(found: dict[str, Any], key: str) -> dict[str, Any]:
    value = found.get(key)
    if not isinstance(value, dict):
        raise Unreadable(f"has no object {key!r}")
    return value


def parse(found: dict[str, Any], machine: str) -> AsvFile:
    """Read one result file. Raises Unreadable for a shape asv would not accept either."""
    if found.get("version") not in (1, 2):
        raise Unreadable(f"is of asv's version {str(found.get('version'))[:20]}, known are 1 and 2")
    found = as_version_2(found)
    commit, environment = found.get("commit_hash"), found.get("env_name")
    if not isinstance(commit, str) or not is_commit(commit):
        raise Unreadable("has no usable commit_hash")
    if not isinstance(environment, str):
        raise Unreadable("has no env_name")
    params = _mapping(found, "params")
    if params.get("machine") != machine:
        raise Unreadable(f"is of machine {str(params.get('machine'))[:60]!r}, not of {machine!r}")
    columns = found.get("result_columns")
    if not isinstance(columns, list) or not all(isinstance(c, str) for c in columns):
        raise Unreadable("has no result_columns")
    benchmarks, combinations = [], []
    numbers: list[tuple[float | None, float | None, float | None, float]] = []
    codes: list[int] = []
    reasons: dict[int, str] = {}
    for name, row in sorted(_mapping(found, "results").items()):
        if not isinstance(row, list):
            raise Unreadable(f"has no list for {name[:80]!r}")
        held = dict(zip(columns, row, strict=False))
        benchmarks.append(name)
        combinations.append(tuple(_combinations(name, held.get("params") or [])))
        for i, value in enumerate(_values(name, held.get("result"), len(combinations[-1]))):
            number = finite(value)
            code, reason = _meaning(value, number)
            if reason:
                reasons[len(codes)] = reason
            codes.append(code)
            ends = finite(_at(held, "stats_ci_99_a", i)), finite(_at(held, "stats_ci_99_b", i))
            low, high = ends if None not in ends else (None, None)
            numbers.append((number, low, high, finite(_at(held, "stats_repeat", i)) or 0.0))
    table = np.array(numbers, dtype=np.float64).reshape(-1, 4)
    return AsvFile(
        commit,
        environment,
        date_ms=finite(found.get("date")) or 0.0,
        params=params,
        layout=Layout(tuple(benchmarks), tuple(combinations)),
        value=table[:, 0],
        low=table[:, 1],
        high=table[:, 2],
        n=count(table[:, 3]),
        code=np.array(codes, dtype=np.uint8),
        reasons=reasons,
    )


def _combinations(name: str, axes: Any) -> Iterator[tuple[str, ...]]:
    if not isinstance(axes, list) or not all(isinstance(axis, list) for axis in axes):
        raise Unreadable(f"{name[:80]!r} has malformed params")
    size = math.prod(len(axis) for axis in axes)
    if size > MAX_POINTS:
        raise Unreadable(f"{name[:80]!r} has {size} parameter combinations")
    return itertools.product(*([str(p) for p in axis] for axis in axes))


def _values(name: str, values: Any, size: int) -> list[Any]:
    if values is None:
        return [None] * size
    if not isinstance(values, list) or len(values) != size:
        raise Unreadable(f"{name[:80]!r} has {len(values) if isinstance(values, list) else 'no'} values for {size}")
    return values


def _at(row: dict[str, Any], column: str, i: int) -> Any:
    values = row.get(column)
    return values[i] if isinstance(values, list) and i < len(values) else None


def _meaning(value: Any, number: float | None) -> tuple[int, str]:
    if number is not None:
        return OK, ""
    if value is None:
        return FAILED, ""
    if isinstance(value, float) and math.isnan(value):
        return SKIPPED, ""
    return ODD, f"the recorded value is {str(value)[:40]}, not a finite number"


def count(repeat: Floats) -> NDArray[np.int64]:
    """How many samples a value is of; 1 where asv does not say."""
    return np.where(repeat > 0, np.minimum(np.nan_to_num(repeat), LARGEST_N), 1).astype(np.int64)
