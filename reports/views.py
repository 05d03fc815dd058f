"""What the pages say, computed from rows: standings, winners, sentences. Pure data, no HTML."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archbench.cells import Scalar, TrackNote
from archbench.formatting import ratio, significant
from archbench.reports.charts import Chart, RatioScale, looks
from archbench.reports.charts.curves import curves
from archbench.reports.charts.heat import Heat, heat
from archbench.reports.charts.pareto import pareto
from archbench.reports.charts.scaling import scaling
from archbench.reports.charts.stacked import Stack, stacks
from archbench.reports.charts.timeline import Timeline, timelines
from archbench.reports.export import rank_text
from archbench.reports.instruments import Instruments, instruments
from archbench.reports.rank import band, log_interval, overall
from archbench.reports.row import MEASURED, Row, is_crowded, is_rankable
from archbench.reports.words import one
from archbench.stats import Interval, geometric_mean


@dataclass(frozen=True)
class Standing:
    """A contender over all cases."""

    place: str
    first: bool  # nobody is surely faster
    name: str
    family: str
    summary: str
    mean: str  # of what ranks: the slowdown, or the quality against the baseline's
    strip: tuple[float, float, float] | None  # the mean and its interval on 0..100
    time: Interval | None  # the slowdown, where it is not what ranks
    coverage: str
    complete: bool

    @property
    def time_text(self) -> str:
        return ratio(self.time.value, (self.time.lo, self.time.hi)) if self.time else ""


@dataclass(frozen=True)
class TrackBoard:
    """One track on one machine at one commit."""

    machine: str
    commit: str
    date: str
    dirty: bool
    forced: list[str]  # obstacles that were overruled
    versions: str
    noise: str  # the A/A band over the cases, as text
    sentence: str
    quality: str  # what ranks in words, where it is not the time
    measure: str  # the head of the standings' column
    timed: str  # what a time is of: "a token", "a step"
    data: list[tuple[str, str, str]]  # what its rows were measured on: name, origin, fingerprint
    standings: list[Standing]
    one: float  # where 1x is on the strips of the standings
    heats: list[tuple[str, Heat]]  # what it shows, and the table
    charts: list[Chart]
    timelines: list[Timeline]
    stacks: list[Stack]
    instruments: list[Instruments]  # what was measured beside time, memory and error, a table per case
    rows: list[Row]
    others: list[tuple[str, str, int]]  # other commits on this machine: commit, date, rows

    @property
    def pictured(self) -> bool:
        """Whether it has pictures whose boxes are hatched."""
        return bool(self.timelines or self.stacks)


@dataclass(frozen=True)
class Winner:
    """What the index says about a track on a machine."""

    machine: str
    track: str
    names: list[str]  # several: nobody can tell them apart
    margin: str  # slowdown against the baseline
    lead: str  # against the next best that is surely slower
    firsts: str
    rows: int
    commit: str
    date: str


def measure(quality: str) -> str:
    """What a standing is by, as a column's head."""
    return f"{quality.capitalize()} against baseline" if quality else "Slowdown"


def newest_commits(rows: Sequence[Row]) -> list[str]:
    """Commits from newest to oldest: by commit date, then by the last run that measured them."""
    latest: dict[str, tuple[str, str]] = {}
    for row in rows:
        latest[row.commit] = max(latest.get(row.commit, ("", "")), (row.date, row.run))
    return sorted(latest, key=lambda commit: (latest[commit], commit), reverse=True)


def main_commit(rows: Sequence[Row]) -> str:
    """The commit a page shows: the newest that measured at least half as many rows as the fullest one.

    A run of one contender at a newer commit does not replace the whole table, nor do imported rows a measured one.
    """
    rows = [row for row in rows if row.origin == MEASURED] or rows
    counts = Counter(row.commit for row in rows if row.status == "ok") or Counter(row.commit for row in rows)
    enough = max(counts.values()) / 2
    return next(commit for commit in newest_commits(rows) if counts[commit] >= enough)


def current(rows: Sequence[Row]) -> list[Row]:
    """The rows of the commit a page shows."""
    commit = main_commit(rows)
    return [row for row in rows if row.commit == commit]


def track_board(
    rows: Sequence[Row], table: list[Standing], note: TrackNote | None = None, looked: Mapping[str, int] | None = None
) -> TrackBoard:
    """The board of one track on one machine; ``rows`` are of all its commits, ``table`` of the one it shows.

    ``looked``: what contenders look like in charts, where several boards share a page.
    """
    cases: Mapping[str, Mapping[str, Scalar]] = note.cases if note else {}
    item = note.item if note else "call"
    timed = one("step" if item == "call" and rows[0].quality else item)  # the call of a track that trains is a step
    shown = current(rows)
    first = shown[0]
    newest = max(shown, key=lambda row: row.run)
    width = overall_band(shown, sorted({row.case for row in shown if row.control is not None}))
    scale = RatioScale.over([row for row in shown if is_rankable(row)])
    counts = Counter(row.commit for row in rows)
    dates = {row.commit: row.date[:10] for row in rows}
    costs = ([first.ranking] if first.quality else []) + ["peak_bytes", "energy_j"]
    seen = looks(shown) if looked is None else looked
    charts = [*(pareto(shown, name, seen) for name in costs), scaling(cases, shown, seen, item), *curves(shown, seen)]
    order = [s.name for s in table]
    pictures = [(first.quality_name, heat(shown, order, cases, first.ranking))] if first.quality else []
    pictures.append(("slowdown", heat(shown, order, cases)))
    return TrackBoard(
        machine=first.machine,
        commit=first.commit,
        date=first.date,
        dirty=any(row.host.get("dirty") is True for row in shown),
        forced=sorted({str(row.host["forced"]) for row in shown if row.host.get("forced")}),
        versions=versions_of(newest),
        noise=f"±{100 * (math.exp(width) - 1):.1f} %" if width else "",
        sentence=sentence(shown, table, timed),
        quality=first.quality_name,
        measure=measure(first.quality_name),
        timed=timed,
        data=sorted({_data(row) for row in shown if "data.fingerprint" in row.host}),
        standings=table,
        one=scale.at(1.0),
        heats=[(what, picture) for what, picture in pictures if picture is not None],
        charts=[chart for chart in charts if chart is not None],
        timelines=timelines(shown, cases, order),
        stacks=stacks(shown, cases, note.stacks if note else {}),
        instruments=instruments(shown, cases, order, item),
        rows=shown,
        others=[(commit, dates[commit], counts[commit]) for commit in newest_commits(rows) if commit != first.commit],
    )


def _data(row: Row) -> tuple[str, str, str]:
    name, origin, fingerprint = (str(row.host.get(f"data.{fact}", "")) for fact in ("name", "origin", "fingerprint"))
    return name, origin, fingerprint


def versions_of(row: Row) -> str:
    return ", ".join(
        f"{key.removeprefix('version.')} {value}"
        for key, value in sorted(row.host.items())
        if key.startswith("version.")
    )


def standings(rows: Sequence[Row]) -> list[Standing]:
    """Contenders over all cases; those that lack cases are listed, not ranked."""
    notes = {row.contender: row.note for row in rows}
    rankable = [row for row in rows if is_rankable(row)]
    crowded = {row.case for row in rankable if is_crowded(row) and not row.quality}
    if crowded < {row.case for row in rankable}:  # a case that was crowded for one contender says nothing of the order
        rankable = [row for row in rankable if row.case not in crowded]
    counts = Counter(row.case for row in rankable)  # a case of a few says nothing of the others
    cases = sorted(case for case, count in counts.items() if 2 * count >= max(counts.values()))
    by_contender: dict[str, dict[str, Interval]] = defaultdict(dict)
    for row in rankable:
        by_contender[row.contender][row.case] = log_interval(row.metrics[row.ranking])
    scale = RatioScale.over(rankable)
    quality = any(row.quality for row in rows)
    found = []
    for entry in overall(by_contender, cases, 0.0 if quality else overall_band(rows, cases)):
        shown = entry.mean.exp() if entry.mean else None
        found.append(
            Standing(
                place=rank_text(entry.rank),
                first=entry.rank is not None and entry.rank[0] == 1,
                name=entry.name,
                family=notes[entry.name].family,
                summary=notes[entry.name].summary,
                mean=ratio(shown.value, (shown.lo, shown.hi)) if shown else "not ranked: cases are missing",
                time=mean_slowdown(rows, entry.name, cases) if quality and shown else None,
                strip=(scale.at(shown.lo), scale.at(shown.value), scale.at(shown.hi)) if shown else None,
                coverage=f"{entry.covered} of {len(cases)}",
                complete=shown is not None,
            )
        )
    return found


def mean_slowdown(rows: Sequence[Row], contender: str, cases: Sequence[str]) -> Interval | None:
    """The geometric mean of a contender's slowdown over the cases."""
    found = [
        log_interval(row.metrics["slowdown"])
        for row in rows
        if row.contender == contender and row.case in cases and "slowdown" in row.metrics
    ]
    return geometric_mean(found).exp() if found else None


def overall_band(rows: Sequence[Row], cases: Sequence[str]) -> float:
    """The A/A band over all cases, in log units: the mean of the bands of the cases."""
    bands = [band([r.control for r in rows if r.case == case and r.control is not None]) for case in cases]
    return sum(bands) / len(bands) if bands else 0.0


def sentence(rows: Sequence[Row], table: Sequence[Standing], timed: str) -> str:
    """One line to quote: who is first, by how much, where, at which commit. Times are of ``timed``: "a step"."""
    first = rows[0]
    names = [s.name for s in table if s.first]
    leader = next((s for s in table if s.complete), None)
    ranked = sum(s.complete for s in table)
    if leader is None or not names or ranked < 2:
        return ""
    who = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    what = "is the fastest" if len(names) == 1 else "are the fastest and cannot be told apart"
    cases = leader.coverage.rpartition(" ")[2]
    if first.quality:
        return _trade(rows, table, who, len(names) > 1, int(cases), timed)
    return (
        f"{first.track} on {first.machine}: {who} {what} of {ranked} contenders over {cases} "
        f"case{'' if cases == '1' else 's'}, {leader.mean} the time of {first.baseline} "
        f"(95 % interval; commit {first.commit[:8]})."
    )


def _trade(rows: Sequence[Row], table: Sequence[Standing], who: str, several: bool, cases: int, timed: str) -> str:
    """The sentence of a track that ranks by quality: who errs least, and what the quickest gives up for its speed."""
    first, what = rows[0], rows[0].quality_name
    times = [(s.time.value, s.name, s) for s in table if s.time is not None]
    quickest = min(times)[2] if times else None
    said = (
        f"{first.track} on {first.machine}: {who} {'have' if several else 'has'} the lowest {what} of "
        f"{sum(s.complete for s in table)} contenders over {cases} case{'' if cases == 1 else 's'}"
    )
    if quickest is not None and quickest.name == first.baseline:
        said += f"; {timed} of {quickest.name} is the quickest"
    elif quickest is not None:
        said += (
            f"; {quickest.name}, the quickest, takes {quickest.time_text} the time {timed} of {first.baseline} "
            f"and has {quickest.mean} its {what}"
        )
    return f"{said} (95 % intervals over seeds and cases; commit {first.commit[:8]})."


def winner(rows: Sequence[Row], table: Sequence[Standing]) -> Winner:
    """The best of a track on a machine, or the several nobody can tell apart; arguments as for ``track_board``."""
    shown = current(rows)
    machine, track = shown[0].machine, shown[0].track
    names = [s.name for s in table if s.first]
    leader = next((s for s in table if s.complete), None)
    follower = next((s for s in table if s.complete and not s.first), None)
    firsts = lead = ""
    if leader is not None:
        cases = {row.case for row in shown if row.contender == leader.name and is_rankable(row)}
        first = sum(1 for row in shown if row.contender == leader.name and row.rank is not None and row.rank[0] == 1)
        firsts = f"first or tied in {first} of {len(cases)} cases"
        if follower is not None:
            times = _against(shown, follower.name, leader.name)
            what = shown[0].quality_name
            lead = f"{follower.name} takes {times} as long"
            if what:
                lead = f"{follower.name} has {times} the {what} of {leader.name}"
    margin = f"{leader.mean} {shown[0].quality_name}".rstrip() if leader else ""
    return Winner(machine, track, names, margin, lead, firsts, len(shown), shown[0].commit, shown[0].date)


def _against(rows: Sequence[Row], slower: str, faster: str) -> str:
    logs: dict[str, dict[str, float]] = {slower: {}, faster: {}}
    for row in rows:
        if row.contender in logs and is_rankable(row):
            logs[row.contender][row.case] = math.log(row.metrics[row.ranking].value)
    shared = logs[slower].keys() & logs[faster].keys()
    return f"{significant(math.exp(sum(logs[slower][c] - logs[faster][c] for c in sorted(shared)) / len(shared)))}×"
