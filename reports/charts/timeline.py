"""Timelines as a picture (a Gantt chart): a row per lane, a box per piece of work, idle time as empty space.

The contenders of a case stand under each other on one time scale, each from the begin of its own first piece, so that
two ways of scheduling the same work compare at a glance. A kind of work has a colour and, beside the first, a hatching;
a box tells its part (the micro-batch) where there is room.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archbench.cells import Scalar, Span
from archbench.formatting import seconds
from archbench.reports.charts import COLOURS, even_ticks
from archbench.reports.row import Row
from archbench.reports.timelines import by_lane, covered_s, working
from archbench.reports.words import share_text

WIDTH, LEFT, RIGHT = 860, 96, 104
ACROSS = WIDTH - LEFT - RIGHT
LANE, GAP, HEAD, AXIS = 22, 3, 24, 40
MOST_CONTENDERS = 12  # of a picture
MOST_CASES = 8  # of a machine
MOST_BOXES = 3000  # of all pictures of a machine: some 60 KB compressed
CHARACTER = 7.0  # width of a digit in a box
LANE_LENGTH = 14  # characters of a lane's name


@dataclass(frozen=True)
class Box:
    """A piece of work in the picture. ``kind`` is its colour and hatching, ``label`` what fits into it."""

    x: float
    width: float
    kind: int
    label: str
    title: str


@dataclass(frozen=True)
class Lane:
    """Who works, and for what share of the time it does not."""

    name: str
    y: int
    boxes: list[Box]
    idle: str


@dataclass(frozen=True)
class Group:
    """One contender's lanes."""

    name: str
    y: int
    length: str  # of its timeline
    right: float  # where that ends in the picture
    lanes: list[Lane]


@dataclass(frozen=True)
class Timeline:
    """The contenders of a case. ``rows`` are the same as a table: contender, lane, times by kind of work, idle."""

    case: str
    note: str
    legend: list[tuple[int, str]]
    groups: list[Group]
    ticks: list[tuple[float, str]]
    height: int
    kinds: list[str]
    rows: list[tuple[str, str, list[str], str]]
    width: int = WIDTH
    left: int = LEFT
    right: int = WIDTH - RIGHT


def timelines(rows: Sequence[Row], cases: Mapping[str, Mapping[str, Scalar]], order: Sequence[str]) -> list[Timeline]:
    """A picture per case that has timelines, in the order of the track's cases; contenders in ``order``."""
    place = {name: i for i, name in enumerate(order)}
    found: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (place.get(row.contender, len(place)), row.contender)):
        if _ends(working(row.spans))[1] > 0:
            found[row.case].append(row)
    known = [slug for slug in cases if slug in found]
    # A kind of work looks the same in every picture.
    kinds = list(dict.fromkeys(span.what for row in rows for span in working(row.spans)))
    room = MOST_BOXES
    made = []
    for case in [*known, *sorted(found.keys() - set(known))][:MOST_CASES]:
        picture = _timeline(case, found[case], kinds, room)
        room -= sum(len(lane.boxes) for group in picture.groups for lane in group.lanes)
        if picture.groups:
            made.append(picture)
    return made


def _ends(spans: Sequence[Span]) -> tuple[float, float]:
    """Begin of the first piece, and how long it is from there to the end of the last."""
    start = min((span.start_s for span in spans), default=0.0)
    return start, max((span.stop_s for span in spans), default=0.0) - start


def _timeline(case: str, rows: Sequence[Row], kinds: Sequence[str], room: int) -> Timeline:
    shown: list[Row] = []
    left_out: list[str] = []
    for row in rows:
        room -= len(row.spans)
        if room >= 0 and len(shown) < MOST_CONTENDERS:
            shown.append(row)
        else:
            left_out.append(row.contender)
    longest = max((_ends(working(row.spans))[1] for row in shown), default=1.0)
    present = {span.what for row in shown for span in working(row.spans)}
    groups, table, y = [], [], 6
    for row in shown:
        group, told = _group(row, kinds, longest, y)
        groups.append(group)
        table += told
        y += HEAD + len(group.lanes) * (LANE + GAP) + 8
    numbered = any(span.part is not None for row in shown for span in row.spans)
    note = [
        f"All on one time scale; the longest takes {seconds(longest)}. Empty space is time without work.",
        "Numbers in the boxes are micro-batches or other parts, from 0." if numbered else "",
        f"Not drawn, for want of room: {', '.join(left_out)}." if left_out else "",
    ]
    return Timeline(
        case=case,
        note=" ".join(filter(None, note)),
        legend=[(min(i, COLOURS - 1), kind) for i, kind in enumerate(kinds) if kind in present],
        groups=groups,
        ticks=[
            (round(LEFT + ACROSS * tick / longest, 1), f"{1e3 * tick:.5g}") for tick in even_ticks(longest, most=10)
        ],
        height=y + AXIS,
        kinds=list(kinds),
        rows=table,
    )


def _group(
    row: Row, kinds: Sequence[str], longest: float, top: int
) -> tuple[Group, list[tuple[str, str, list[str], str]]]:
    start, length = _ends(working(row.spans))
    lanes, table = [], []
    for i, (name, spans) in enumerate(by_lane(row.spans).items()):
        work = working(spans)
        boxes = [_box(span, kinds.index(span.what), start, longest) for span in work]
        idle = share_text(max(0.0, 1 - covered_s([_moved(span, start) for span in work]) / length))
        lanes.append(Lane(_short(name), top + HEAD + i * (LANE + GAP), boxes, f"idle {idle}"))
        times = [sum(span.stop_s - span.start_s for span in work if span.what == kind) for kind in kinds]
        table.append((row.contender, name, [seconds(time) if time else "" for time in times], idle))
    right = round(LEFT + ACROSS * length / longest, 1)
    return Group(row.contender, top, seconds(length), right, lanes), table


def _moved(span: Span, start: float) -> Span:
    return Span(span.lane, span.what, span.start_s - start, span.stop_s - start, span.part)


def _short(name: str) -> str:
    return name if len(name) <= LANE_LENGTH else f"{name[: LANE_LENGTH - 1]}\u2026"


def _box(span: Span, kind: int, start: float, longest: float) -> Box:
    x = LEFT + ACROSS * (span.start_s - start) / longest
    width = ACROSS * (span.stop_s - span.start_s) / longest
    part = "" if span.part is None else str(span.part)
    named = f"{span.what} {part}".rstrip()
    title = f"{named}: {seconds(span.stop_s - span.start_s)} from {seconds(span.start_s - start)}"
    label = part or span.what
    return Box(
        round(x, 1),
        max(0.5, round(width, 1)),
        min(kind, COLOURS - 1),
        label if CHARACTER * len(label) + 4 <= width else "",
        title,
    )
