"""What a schema cannot say of a record: units, signs, intervals, dates, and numbers that follow from their samples.

The reader calls these checks, so what ``archbench validate`` quarantines is what the board leaves out. They see the
record alone: no clock, no repository, no other file. Each raises ValueError with the reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from archbench.cells import SCHEMA, Cell, Data, Duel, Metric, Record, Run, Started, TrackNote
from archbench.names import is_safe_name, legible
from archbench.reports.timelines import check_timeline
from archbench.stats import Interval, control_log_ratios, hodges_lehmann, log_ratios, median_interval
from archbench.training import SUFFIXES, over_seeds

OURS = ("latency_s", "slowdown", "peak_bytes", "error", "energy_j", "control")  # of every cell, so no track's quality
UNITS = {"slowdown": "ratio", "error": "ratio", "control": "ratio"}
LARGEST = {"s": 1e7, "B": 1e18, "J": 1e12, "ratio": 1e15}  # beyond these a number is no measurement
LEAST = {"s": 1e-12, "B": 1e-3, "J": 1e-15, "ratio": 1e-12}  # and below these, where it must not be zero, neither
RATIO = 1e9  # the largest slowdown, and one over the least
CURVE = 1e30  # the largest coordinate of a curve
FACT = 2**63  # the largest number among the facts of a host
MAX_NAME = 300
MAX_TEXT = 5000
MAX_ESSAY = 60_000  # the notes and the derivation of a track: a long page; formulas cost 50 microseconds each
MAX_CASES = 3000  # of a track
MAX_CONTENDERS = 500  # of a track
MAX_AXES = 40  # of a case
MAX_METRICS = 40  # of a cell, its curves included
MAX_CURVE = 20_000  # points of a curve
MAX_STACKS = 8  # of a track
MAX_POINTS = 100_000  # values of one asv file: few parameters span a product of millions
MAX_PARAMETER = 2000  # asv writes the repr of an object
MAX_BLOCKS = 1000
MAX_SAMPLES = 1_000_000_000
ABOVE_THE_ROOFLINE = 1.05  # the harness gives no number above it (IMPOSSIBLE_ABOVE), so a record has none either
CLOCK_SKEW = timedelta(days=1)  # between the machine that measured and the one that committed
AGREES = 1e-6  # relative: what two processors may differ by in the same arithmetic
_COMMIT = re.compile(r"[0-9a-f]{4,64}")
_FINGERPRINT = re.compile(r"[0-9a-f]{8,128}")
_NEVER_NEGATIVE = re.compile(r"(?:timeraw|time|peakmem|mem)_")  # asv's kinds by the names of their functions
_HIDING = re.compile(rb'[^\x20-\x7e]|\\[^"\\/]')  # bytes of a line in which an illegible character could be


def date(text: str, what: str) -> datetime:
    """An ISO 8601 date with its offset (UTC where it has none). Raises ValueError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{what} {text[:40]!r} is not an ISO 8601 date") from None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    if not 2000 <= found.year < 2100:
        raise ValueError(f"{what} {text[:40]!r} is not in this century")
    return found


def is_commit(text: object) -> bool:
    """Whether it looks like a hash, and therefore not like a path or an option of git."""
    return isinstance(text, str) and _COMMIT.fullmatch(text) is not None


def check_record(record: Record) -> None:
    """Raises ValueError."""
    if isinstance(record, Cell):
        check_cell(record)
    elif isinstance(record, TrackNote):
        _usable(record.track)
        _names("name", [record.baseline, record.quality, *record.cases, *record.contenders])
        if record.quality in OURS or record.quality.endswith("_ratio"):
            raise ValueError(f"quality {record.quality!r} is a number that every cell has, or a ratio of the board's")
        _few("cases", len(record.cases), MAX_CASES)
        _few("contenders", len(record.contenders), MAX_CONTENDERS)
        _few("stacks", len(record.stacks), MAX_STACKS)
        for title, parts in record.stacks.items():
            _names("stack", [title, *parts])
            _few("parts of a stack", len(parts), MAX_METRICS)
        for axes in record.cases.values():
            _few("axes of a case", len(axes), MAX_AXES)
            _facts(axes)
        _short([record.question, record.version, record.item], MAX_TEXT)
        _short([record.notes, record.derivation], MAX_ESSAY)
        for note in record.contenders.values():
            _short([note.summary, note.source, note.family, note.differs or ""], MAX_TEXT)
    elif isinstance(record, Started):
        _usable(record.track)
        _names("name", [record.case, record.contender, record.baseline])


def check_header(run: Run) -> None:
    """Raises ValueError."""
    if run.schema != SCHEMA:
        raise ValueError(f"is of schema {run.schema}, known is {SCHEMA}")
    if not is_safe_name(run.run):
        raise ValueError(f"run {run.run[:60]!r} is not a usable name")
    if not is_commit(run.commit):
        raise ValueError(f"commit {run.commit[:60]!r} does not look like a hash")
    started = date(run.started, "started")
    if run.commit_date and started < date(run.commit_date, "commit_date") - CLOCK_SKEW:
        raise ValueError(f"started {run.started} before its commit was made ({run.commit_date})")
    _facts(run.host)
    facts = {**run.host, **run.versions}
    _short([run.environment, *facts, *map(str, facts.values())], MAX_TEXT)
    for ceiling in run.ceilings:
        if not (math.isfinite(ceiling.value) and ceiling.value > 0):
            raise ValueError(f"ceiling {ceiling.name[:40]!r} is {ceiling.value:g}: it must be positive")


def check_cell(cell: Cell) -> None:
    """Raises ValueError."""
    _usable(cell.track)
    _names("case", [cell.case])
    _names("contender", [cell.contender, cell.baseline])
    _names("metric", [*cell.metrics, *cell.series])
    _few("metrics and curves", len(cell.metrics) + len(cell.series), MAX_METRICS)
    _facts(cell.host)
    _short([cell.reason, *cell.host, *map(str, cell.host.values())], MAX_TEXT)
    if not cell.case or not cell.contender:
        raise ValueError("a cell without a case or a contender")
    if cell.status != "ok" and cell.metrics:
        raise ValueError(f"status {cell.status} with numbers: a number needs a right answer")
    if cell.status == "ok" and not cell.metrics:
        raise ValueError("status ok without numbers")
    if cell.started:
        date(cell.started, "started")
    for name, metric in cell.metrics.items():
        check_metric(name, metric)
    if cell.control is not None:
        check_metric("control", cell.control)
    for curve in cell.series.values():
        _few("points of a curve", len(curve), MAX_CURVE)
        if not all(abs(x) <= CURVE for point in curve for x in point):  # not NaN either
            raise ValueError("a curve is not finite, or beyond 1e30")
    if cell.spans and cell.status != "ok":
        raise ValueError(f"status {cell.status} with a timeline: it needs a right answer")
    check_timeline(cell.spans)
    _few("metrics with samples", len(cell.samples), MAX_METRICS)
    for name, values in cell.samples.items():
        _check_samples(name, values, cell.metrics.get(name))
    if cell.data is not None:
        _check_data(cell.data)
    if cell.limit_fraction is not None and not 1e-12 <= cell.limit_fraction <= ABOVE_THE_ROOFLINE:
        raise ValueError(f"limit_fraction is {cell.limit_fraction:g}: no call is quicker than the machine's limit")
    if cell.duel is not None:
        _check_duel(cell, cell.duel)


def check_asv(content: bytes, found: Mapping[str, Any]) -> None:
    """asv's result file: every text in it is a name on the board, no time and no size is negative.

    Raises ValueError.
    """
    if _HIDING.search(content):
        for text in _texts(found):
            if not text.isprintable():
                raise ValueError(f"holds the text {text[:60]!r}, which hides characters")
    when = found.get("date")
    if isinstance(when, (int, float)) and not 0 <= when < 4_102_444_800_000:  # not NaN either
        raise ValueError(f"date {str(when)[:40]} is not between 1970 and 2100")
    results, points = found.get("results"), 0
    for name, row in results.items() if isinstance(results, dict) else ():
        if len(name) > MAX_NAME:
            raise ValueError(f"benchmark {name[:60]!r} has a name of {len(name)} characters")
        columns = row if isinstance(row, list) else [row.get("result")] if isinstance(row, dict) else [row]
        axes = row.get("params") if isinstance(row, dict) else columns[1] if len(columns) > 1 else None
        if any(len(text) > MAX_PARAMETER for text in _texts(axes)):
            raise ValueError(f"benchmark {name[:60]!r} has a parameter of more than {MAX_PARAMETER} characters")
        points += math.prod(len(axis) for axis in axes or () if isinstance(axis, list)) if isinstance(axes, list) else 1
        if points > MAX_POINTS:
            raise ValueError(f"has more than {MAX_POINTS} values")
        if _NEVER_NEGATIVE.match(name.rpartition(".")[2]) and columns:
            values = columns[0] if isinstance(columns[0], list) else columns[:1]
            if any(value < 0 for value in values if isinstance(value, (int, float))):
                raise ValueError(f"benchmark {name[:60]!r} has a negative time or size")


def readable(line: bytes, record: Record) -> Record:
    """The record with its free text legible; names are legible already, or ``check_record`` had refused them."""
    if not _HIDING.search(line):
        return record
    shown: Record = msgspec.convert(legible_texts(msgspec.to_builtins(record)), Record)
    return shown


def legible_texts(value: Any) -> Any:
    """Plain data with every text in it legible."""
    if isinstance(value, str):
        return legible(value)
    if isinstance(value, dict):
        return {legible_texts(key): legible_texts(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [legible_texts(item) for item in value]
    return value


def _texts(value: Any) -> Iterable[str]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            pending += item


def _usable(track: str) -> None:
    if not is_safe_name(track):
        raise ValueError(f"{track[:60]!r} is not a usable track name")


def _names(what: str, names: Iterable[str]) -> None:
    for name in names:
        if not name.isprintable() or len(name) > MAX_NAME:
            raise ValueError(f"{what} {name[:60]!r} is not usable: it hides characters or is too long")


def _few(what: str, count: int, most: int) -> None:
    if count > most:
        raise ValueError(f"{count} {what}, more than {most}")


def _facts(facts: Mapping[str, Any]) -> None:
    for name, value in facts.items():
        if isinstance(value, (int, float)) and not abs(value) <= FACT:  # not NaN either
            raise ValueError(f"{name[:60]!r} is beyond 2^63")


def _short(texts: Iterable[str], limit: int) -> None:
    for text in texts:
        if len(text) > limit:
            raise ValueError(f"a text of {len(text)} characters, more than {limit}: {text[:60]!r}")


def check_metric(name: str, metric: Metric) -> None:
    """Raises ValueError."""
    ends = metric.ci or (metric.value, metric.value)
    if not all(math.isfinite(x) for x in (metric.value, *ends)):
        raise ValueError(f"{name} is not finite")
    if metric.unit not in LARGEST:
        raise ValueError(f"{name} is in {metric.unit[:20]!r}, known are {', '.join(LARGEST)}")
    suffix = next((unit for end, unit in SUFFIXES.items() if name.endswith(end)), None)
    expected = UNITS.get(name, suffix)
    if expected is not None and metric.unit != expected:
        raise ValueError(f"{name} is in {metric.unit!r}, not in {expected!r}")
    if ends[0] > ends[1]:
        raise ValueError(f"{name} has a reversed interval {ends}")
    slack = AGREES * abs(metric.value)
    if not ends[0] - slack <= metric.value <= ends[1] + slack:
        raise ValueError(f"{name} is {metric.value:g}, outside its interval {ends}")
    if (expected == "s" or name in ("slowdown", "control")) and (metric.value <= 0 or ends[0] <= 0):
        raise ValueError(f"{name} is {metric.value:g}: it must be positive")
    if expected is not None and ends[0] < 0:
        raise ValueError(f"{name} is {metric.value:g}: it cannot be negative")
    if max(map(abs, ends)) > LARGEST[metric.unit] or abs(metric.value) > LARGEST[metric.unit]:
        raise ValueError(f"{name} is {metric.value:g} {metric.unit}: more than anybody measures")
    if any(0 < abs(x) < LEAST[metric.unit] for x in (metric.value, *ends)):
        raise ValueError(f"{name} is {metric.value:g} {metric.unit}: less than anybody measures")
    if name in ("slowdown", "control") and not 1 / RATIO <= ends[0] <= ends[1] <= RATIO:
        raise ValueError(f"{name} is {metric.value:g}, {ends}: no ratio of two times is beyond {RATIO:g}")
    if not 1 <= metric.n <= MAX_SAMPLES:
        raise ValueError(f"{name} is not of 1 to {MAX_SAMPLES} samples")


def _check_duel(cell: Cell, duel: Duel) -> None:
    """The samples are times, and the numbers are theirs."""
    columns = (duel.contender_s, duel.baseline_s, duel.control_s)
    blocks = len(duel.contender_s)
    if not 1 <= blocks <= MAX_BLOCKS or any(len(column) != blocks for column in columns):
        raise ValueError(f"a duel of {', '.join(str(len(column)) for column in columns)} samples")
    if len(duel.contender_cpu_s) not in (0, blocks):
        raise ValueError(f"{len(duel.contender_cpu_s)} CPU times for {blocks} samples")
    if not all(0 < x < math.inf for column in columns for x in column):
        raise ValueError("a sample of the duel is no positive time")
    if not all(0 <= x < math.inf for x in duel.contender_cpu_s):
        raise ValueError("a CPU time of the duel is negative or not finite")
    if blocks > 2 and all(len(set(column)) == 1 for column in columns):
        raise ValueError("all samples of the duel are equal: no clock measures that")
    _follows("latency_s", cell.metrics.get("latency_s"), median_interval(duel.contender_s))
    _follows("slowdown", cell.metrics.get("slowdown"), hodges_lehmann(log_ratios(duel)).exp())
    _follows("control", cell.control, hodges_lehmann(control_log_ratios(duel)).exp())


def _check_samples(name: str, values: Sequence[float | None], stored: Metric | None) -> None:
    """A metric is what its runs give."""
    known = [value for value in values if value is not None]
    if len(values) > MAX_BLOCKS or not all(abs(value) <= CURVE for value in known):  # not NaN either
        raise ValueError(f"the runs' values of {name} are not finite, or more than {MAX_BLOCKS}")
    if stored is None or not known:
        raise ValueError(f"there are runs for {name}, but no number, or a number without a run")
    for value in known:
        check_metric(name, Metric(value, stored.unit))
    found = over_seeds(name, known)
    low, high = found.ci or (found.value, found.value)
    if stored.n != found.n or (stored.ci is None) != (found.ci is None):
        raise ValueError(f"{name} is of {stored.n} runs, there are {found.n}")
    _follows(name, stored, Interval(found.value, low, high, found.n))


def _check_data(data: Data) -> None:
    _names("data", [data.name])
    _short([data.origin], MAX_TEXT)
    if not _FINGERPRINT.fullmatch(data.fingerprint):
        raise ValueError(f"fingerprint {data.fingerprint[:60]!r} does not look like a hash")


def _follows(name: str, stored: Metric | None, found: Interval) -> None:
    if stored is None:
        return
    kept = (stored.value, *(stored.ci or (found.lo, found.hi)))
    for ours, theirs in zip((found.value, found.lo, found.hi), kept, strict=True):
        if not math.isclose(ours, theirs, rel_tol=AGREES):
            raise ValueError(f"{name} is stored as {theirs:g}, its samples give {ours:g}")
