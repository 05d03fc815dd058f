"""Charts as data for the inline-SVG templates: positions are computed here, drawing is the template's.

Own SVG because it prints, needs no script and costs a few kilobytes. Lines differ by colour, dash and marker, so that
colour is never alone; the palette is Okabe and Ito's, which colour-blind readers tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from archbench.reports.row import Row

WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 210, 14, 44
ACROSS, UPRIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM  # lengths of the axes
MARKERS = ("circle", "square", "triangle", "diamond")
COLOURS = 7
DASHES = 3
ASIDE_DASH = 3  # the long one, of contenders that compute another function
LABELLED = 18  # as many names as fit beside the picture
LABEL_LENGTH = 33  # characters
MAX_TICKS = 12  # of an axis
MARKED = 12  # markers along a line: enough to follow it, also where it has hundreds of points


@dataclass(frozen=True)
class Line:
    """One contender over the axis."""

    name: str
    label: str  # the name, or what fits of it, and what a reader must know beside it
    points: list[tuple[float, float, str]]  # x, y in the picture, and what to say about the point
    marked: list[tuple[float, float, str]]  # those of them that get a marker, the last among them
    colour: int
    dash: int
    marker: str
    label_y: float | None  # None: too many lines end higher up for this one to have a label


@dataclass(frozen=True)
class Chart:
    """Lines over an axis, or points with names beside them where ``scatter``."""

    title: str
    note: str  # below the picture: what all points share, which axes are logarithmic
    x_label: str
    y_label: str
    lines: list[Line]
    guide: list[tuple[float, float]]  # the physical limit, or the front of what is not dominated
    guide_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    scatter: bool = False
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class LogScale:
    """Places positive values on a logarithmic axis of the picture, from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        if self.high <= self.low:
            return round((self.start + self.end) / 2, 1)
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + (self.end - self.start) * share, 1)


def x_scale(low: float, high: float) -> LogScale:
    return LogScale(low, high, LEFT, WIDTH - RIGHT)


def y_scale(low: float, high: float) -> LogScale:
    return LogScale(low, high, HEIGHT - BOTTOM, TOP)


EVEN_STEPS = 6
LEAST_STEP = 1e-300  # of an axis: below it a float has no powers


def ticks(low: float, high: float, base: float = 10.0) -> list[float]:
    """Round numbers within a range for a logarithmic axis: powers of ``base``, with 2 and 5 between where few."""
    first, last = math.floor(math.log(low, base)) - 1, math.ceil(math.log(high, base)) + 1
    powers = [base**i for i in range(max(first, -307), min(last, 308) + 1)]  # a float holds no more
    found = [p for p in powers if low <= p <= high]
    if len(found) < 3 and base == 10.0:
        found = [m * p for p in powers for m in (1, 2, 5) if low <= m * p <= high]
    if len(found) < 3 and base == 10.0:  # a range within a factor of a few: even steps
        step = next(m * p for p in powers for m in (1, 2, 5) if m * p * EVEN_STEPS >= high - low)
        found = [round(step * i, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return found


def even_ticks(high: float, unit: str = "", most: int = EVEN_STEPS, low: float = 0.0) -> list[float]:
    """Round numbers from ``low`` to ``high`` on a linear axis, at most about ``most``; bytes in powers of two."""
    wanted = (high - low) / most
    if not wanted > LEAST_STEP:
        return [low]
    if unit == "B":
        step = 2.0 ** math.ceil(math.log2(wanted))
    else:
        power = 10.0 ** math.floor(math.log10(wanted))
        step = next((m * power for m in (1, 2, 5) if m * power >= wanted * 0.999), 10 * power)
    return [step * i for i in range(math.ceil(low / step * 0.999999), math.floor(high / step * 1.000001) + 1)]


def spread(wanted: Sequence[float], gap: float = 15) -> list[float]:
    """Label heights near the wanted ones (ascending), at least a gap apart and inside the picture."""
    placed: list[float] = []
    for height in wanted:
        placed.append(max(height, placed[-1] + gap if placed else TOP + 4))
    over = placed[-1] - (HEIGHT - BOTTOM) if placed else 0
    if over > 0:
        for i in range(len(placed) - 1, -1, -1):
            limit = HEIGHT - BOTTOM if i == len(placed) - 1 else placed[i + 1] - gap
            placed[i] = min(placed[i], limit)
    return [round(height, 1) for height in placed]


def few(found: Sequence[tuple[float, str]], length: float) -> list[tuple[float, str]]:
    """Ticks (place, text) far enough apart to be read: at most twelve along an axis of that length."""
    gap = length / (MAX_TICKS - 1)
    kept: list[tuple[float, str]] = []
    for place, text in found:
        if not kept or abs(place - kept[-1][0]) >= gap:
            kept.append((place, text))
    return kept


def _label(name: str, aside: bool) -> str:
    said = " (another function)" if aside else ""
    room = LABEL_LENGTH - len(said)
    return (name if len(name) <= room else f"{name[: room - 1]}\u2026") + said


def looks(rows: Iterable[Row]) -> dict[str, int]:
    """A number for each contender that was measured, from which its colour, dash and marker follow.

    The baseline is first, the others follow by name, so that a contender looks the same in every chart of a page.
    """
    measured = {row.contender: row.baseline for row in rows if row.status == "ok"}
    return {name: i for i, name in enumerate(sorted(measured, key=lambda name: (name != measured[name], name)))}


def drawn(
    series: Sequence[tuple[str, list[tuple[float, float, str]]]],
    looks: Mapping[str, int],
    aside: Collection[str] = frozenset(),
) -> list[Line]:
    """Lines with their looks and label heights; ``series`` is ordered by where each line ends, highest first.

    The lowest eighteen get a label. ``aside`` are the names of contenders that compute another function.
    """
    without = max(0, len(series) - LABELLED)
    labels = [*[None] * without, *spread([points[-1][1] for _, points in series[without:]])]
    return [
        Line(
            name,
            _label(name, name in aside),
            points,
            points[:: -max(1, -(-len(points) // MARKED))][::-1],
            looks[name] % COLOURS,
            ASIDE_DASH if name in aside else looks[name] // COLOURS % DASHES,
            MARKERS[looks[name] % len(MARKERS)],
            label_y,
        )
        for label_y, (name, points) in zip(labels, series, strict=True)
    ]


def noted(note: str, lines: Sequence[Line]) -> str:
    """The note of a chart, with how many of its lines have no label."""
    without = sum(line.label_y is None for line in lines)
    if not without:
        return note
    return f"{note} {without} of {len(lines)} contenders are grey and without a label: those that end highest.".lstrip()


@dataclass(frozen=True)
class RatioScale:
    """Places ratios on a logarithmic strip of 0 to 100, with 1x marked."""

    low: float
    high: float

    @classmethod
    def over(cls, rows: Sequence[Row]) -> RatioScale:
        """A scale that holds every interval of the rows, and 1x."""
        ends = [1.0]
        for row in rows:
            metric = row.metrics.get(row.ranking)
            if metric:
                ends += [metric.value, *(end for end in metric.ci or () if end > 0)]
        return cls(min(ends) / 1.1, max(ends) * 1.1)

    def at(self, ratio: float) -> float:
        position = 100 * math.log(max(ratio, self.low) / self.low) / math.log(self.high / self.low)
        return round(min(100.0, max(0.0, position)), 2)
