"""Published results: numbers of a paper, a blog or a repository, each with the address it was taken from.

A small table that a person fills in, as CSV or as a JSON list of objects with the same names. A row is one number or
more of one contender at one case: ``track``, ``case``, ``contender``, ``source`` (a web address) and ``published`` (a
date) are needed, ``summary``, ``hardware`` and ``item`` may be there, and every other column is a metric whose name
ends with its unit. ``items_per_s`` becomes ``latency_s``: lower is better everywhere on the board.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from archbench.cells import Cell, ContenderNote, Metric, Scalar, TrackNote
from archbench.reports.imports.measured import Measured, is_address
from archbench.reports.load import Unreadable, read_json
from archbench.reports.meaning import date
from archbench.reports.words import SHARE
from archbench.training import SUFFIXES, unit_of

NEEDED = ("track", "case", "contender", "source", "published")
OPTIONAL = ("summary", "hardware", "item")
RATE = "items_per_s"
METRIC = re.compile(r"[a-z][a-z0-9_]{0,80}")
MOST_ROWS = 2000
NOTES = (
    "Published results of others, each with its source. They were measured elsewhere, by other means and not against "
    "this track's baseline, so nothing is ranked."
)


def read(content: bytes) -> Measured:
    """One track's results. Raises Unreadable, ValueError."""
    rows = _json(content) if content.lstrip().startswith((b"[", b"{")) else _csv(content)
    if not rows:
        raise Unreadable("no results in it")
    if len(rows) > MOST_ROWS:
        raise ValueError(f"{len(rows)} results, more than {MOST_ROWS}")
    cells = [_cell(number, row) for number, row in enumerate(rows, start=1)]
    tracks, items = {cell.track for cell in cells}, {_text(row, "item") or "call" for row in rows}
    if len(tracks) > 1 or len(items) > 1:
        raise ValueError("results of several tracks, or times per different items: import them one file each")
    keys = [(cell.case, cell.contender) for cell in cells]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        raise ValueError(f"{twice[1]} at {twice[0]} is there twice: name the case so that both can stay")
    track = tracks.pop()
    return Measured(
        track=TrackNote(
            track=track,
            question="What did others publish?",
            version="1",
            baseline="",
            cases={cell.case: {} for cell in cells},
            contenders={
                _text(row, "contender"): ContenderNote(_text(row, "summary"), _text(row, "source"), "published")
                for row in rows
            },
            item=items.pop(),
            notes=NOTES,
        ),
        cells=cells,
        started=max(cell.started for cell in cells),
    )


def _cell(number: int, row: Mapping[str, Scalar]) -> Cell:
    """Raises ValueError, which names the row."""
    missing = [name for name in NEEDED if not _text(row, name)]
    if missing:
        raise ValueError(f"result {number} has no {', '.join(missing)}")
    source = _text(row, "source")
    if not is_address(source):
        raise ValueError(f"result {number}: source {source[:60]!r} is no web address (https://...)")
    if date(_text(row, "published"), "published") > datetime.now(UTC) + timedelta(days=1):
        raise ValueError(f"result {number} is published {_text(row, 'published')[:40]}, which is to come")
    told = {name: value for name, value in row.items() if name not in (*NEEDED, *OPTIONAL) and value not in (None, "")}
    if RATE in told and "latency_s" in told:
        raise ValueError(f"result {number} has {RATE} and latency_s: one follows from the other")
    metrics = dict(_metric(number, name, value) for name, value in told.items())
    if not metrics:
        raise ValueError(f"result {number} has no number")
    host: dict[str, Scalar] = {"source": source, "hardware": _text(row, "hardware")}
    return Cell(
        track=_text(row, "track"),
        case=_text(row, "case"),
        contender=_text(row, "contender"),
        status="ok",
        baseline="",
        metrics=metrics,
        host={name: value for name, value in host.items() if value},
        started=_text(row, "published"),
    )


def _metric(number: int, name: str, value: Scalar) -> tuple[str, Metric]:
    if name != RATE and not (METRIC.fullmatch(name) and name.endswith((*SUFFIXES, SHARE))):
        known = ", ".join((*NEEDED, *OPTIONAL, RATE))
        raise ValueError(
            f"column {name[:60]!r}: known are {known}, and names that end with {', '.join((*SUFFIXES, SHARE))}"
        )
    try:
        found = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found) or (name == RATE and found <= 0):
        raise ValueError(f"result {number}: {name} is {str(value)[:40]!r}, not a number that can be")
    return ("latency_s", Metric(1 / found, "s")) if name == RATE else (name, Metric(found, unit_of(name)))


def _text(row: Mapping[str, Scalar], name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value).strip()


def _json(content: bytes) -> Sequence[Mapping[str, Scalar]]:
    found = read_json(content)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise Unreadable("a list of objects was expected")
    for row in found:
        for name, value in row.items():
            if not (value is None or isinstance(value, (str, int, float))):
                raise Unreadable(f"{name[:60]!r} is no text and no number")
    return found


def _csv(content: bytes) -> Sequence[Mapping[str, Scalar]]:
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        lines = [line for line in reader if any(cell.strip() for cell in line)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise Unreadable(f"no CSV in UTF-8: {error}") from error
    if not lines:
        return []
    head = [name.strip() for name in lines[0]]
    if len(set(head)) < len(head):
        raise Unreadable("two columns have one name")
    odd = next((i for i, line in enumerate(lines[1:], start=1) if len(line) != len(head)), None)
    if odd is not None:
        raise Unreadable(f"result {odd} has {len(lines[odd])} cells, the head has {len(head)}")
    return [dict(zip(head, (cell.strip() for cell in line), strict=True)) for line in lines[1:]]
