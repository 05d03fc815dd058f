"""asv's result files, versions 1 and 2, of any project.

asv stores per benchmark a flat list over the product of its parameters. Null is a benchmark that failed, NaN one that
was skipped. What is read here equals what ``asv.results.Results`` reads from the same file; asv itself is not needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from archbench.cells import Status
from archbench.reports.load import Unreadable, finite

MAX_POINTS = 100_000  # parameter combinations of one benchmark


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


@dataclass(frozen=True)
class AsvFile:
    """One commit in one environment on one machine."""

    commit: str
    environment: str
    date_ms: float
    params: Mapping[str, Any]
    points: list[Point]


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
    if not isinstance(commit, str) or not commit.isalnum() or len(commit) > 64:
        raise Unreadable("has no usable commit_hash")
    if not isinstance(environment, str):
        raise Unreadable("has no env_name")
    params = _mapping(found, "params")
    if params.get("machine") != machine:
        raise Unreadable(f"is of machine {str(params.get('machine'))[:60]!r}, not of {machine!r}")
    columns = found.get("result_columns")
    if not isinstance(columns, list) or not all(isinstance(c, str) for c in columns):
        raise Unreadable("has no result_columns")
    points: list[Point] = []
    for name, row in sorted(_mapping(found, "results").items()):
        if not isinstance(row, list):
            raise Unreadable(f"has no list for {name[:80]!r}")
        points += _points(name, dict(zip(columns, row, strict=False)))
    return AsvFile(commit, environment, finite(found.get("date")) or 0.0, params, points)


def _points(name: str, row: dict[str, Any]) -> Iterator[Point]:
    axes = row.get("params") or []
    if not isinstance(axes, list) or not all(isinstance(axis, list) for axis in axes):
        raise Unreadable(f"{name[:80]!r} has malformed params")
    size = math.prod(len(axis) for axis in axes)
    if size > MAX_POINTS:
        raise Unreadable(f"{name[:80]!r} has {size} parameter combinations")
    values = row.get("result")
    if values is None:
        values = [None] * size
    if not isinstance(values, list) or len(values) != size:
        raise Unreadable(f"{name[:80]!r} has {len(values) if isinstance(values, list) else 'no'} values for {size}")
    for i, parameters in enumerate(itertools.product(*axes)):
        value = values[i]
        number = finite(value)
        low, high = finite(_at(row, "stats_ci_99_a", i)), finite(_at(row, "stats_ci_99_b", i))
        repeat = finite(_at(row, "stats_repeat", i))
        status, reason = _meaning(value, number)
        yield Point(
            benchmark=name,
            parameters=tuple(str(p) for p in parameters),
            value=number,
            status=status,
            reason=reason,
            interval=(low, high) if low is not None and high is not None else None,
            n=int(repeat) if repeat and repeat > 0 else 1,
        )


def _at(row: dict[str, Any], column: str, i: int) -> Any:
    values = row.get(column)
    return values[i] if isinstance(values, list) and i < len(values) else None


def _meaning(value: Any, number: float | None) -> tuple[Status, str]:
    if number is not None:
        return "ok", ""
    if value is None:
        return "crashed", "the benchmark failed"
    if isinstance(value, float) and math.isnan(value):
        return "unsupported", "skipped by the suite"
    return "crashed", f"the recorded value is {str(value)[:40]}, not a finite number"
