"""Timelines: who did what from when to when in one call, and how long a lane did nothing.

A timeline holds pieces of work (``Span``) on lanes: the stages and micro-batches of a pipeline, say. What a lane says
it waited is no work: it counts as idle, like the time of which it says nothing. What comes from result files is checked
here: times are in order, lanes and words few enough for a picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from archbench.cells import Span

MAX_SPANS = 4000  # of a cell: a thousand micro-batches on two lanes, forward and back
MAX_LANES = 64
MAX_KINDS = 24  # of work
MAX_WORD = 60  # characters of a lane or a kind of work
MAX_PART = 1_000_000  # the number of a micro-batch
LONGEST = 1e7  # seconds
WAITING = ("wait", "idle")  # words for no work


def check_timeline(spans: Sequence[Span]) -> None:
    """Raises ValueError."""
    if len(spans) > MAX_SPANS:
        raise ValueError(f"{len(spans)} pieces of a timeline, more than {MAX_SPANS}")
    lanes, kinds = {span.lane for span in spans}, {span.what for span in spans}
    if len(lanes) > MAX_LANES or len(kinds) > MAX_KINDS:
        raise ValueError(
            f"a timeline of {len(lanes)} lanes and {len(kinds)} kinds of work: at most {MAX_LANES} and {MAX_KINDS}"
        )
    for word in sorted(lanes | kinds):
        if not 1 <= len(word) <= MAX_WORD or not word.isprintable():
            raise ValueError(f"a timeline names {word[:MAX_WORD]!r}: it hides characters, or is too long or too short")
    for span in spans:
        if not 0 <= span.start_s <= span.stop_s <= LONGEST:  # not NaN either
            raise ValueError(f"{span.what} on {span.lane} lasts from {span.start_s:g} to {span.stop_s:g} s")
        if span.part is not None and not 0 <= span.part <= MAX_PART:
            raise ValueError(f"{span.what} on {span.lane} is part {str(span.part)[:20]}, not of 0 to {MAX_PART}")


def by_lane(spans: Sequence[Span]) -> Mapping[str, Sequence[Span]]:
    """The pieces of each lane, in the order of their begin; "rank 10" comes after "rank 2"."""
    found: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        found[span.lane].append(span)
    return {
        lane: sorted(found[lane], key=lambda span: (span.start_s, span.stop_s))
        for lane in sorted(found, key=lambda lane: (len(lane), lane))
    }


def working(spans: Sequence[Span]) -> Sequence[Span]:
    """Those that are work."""
    return [span for span in spans if span.what not in WAITING]


def covered_s(spans: Sequence[Span]) -> float:
    """Seconds in which at least one of the pieces (in the order of their begin) was under way."""
    total = until = 0.0
    for span in spans:
        total += max(0.0, span.stop_s - max(span.start_s, until))
        until = max(until, span.stop_s)
    return total
