"""What a run is going to measure: the cells that were asked for, and what was left out and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from archbench.cells import Cell
from archbench.discovery import UnknownName, load_track, select
from archbench.harness.configuration import parameters
from archbench.names import unknown
from archbench.track import Place

CELL_S = 3.5  # a cell of a duel on two cores, its process and the contenders that say at once they cannot included


@dataclass(frozen=True)
class Plan:
    """The cells a run will ask for: cases and contenders by track; and what was asked for and is left out, and why."""

    cases: dict[str, tuple[str, ...]]
    contenders: dict[str, tuple[str, ...]]
    left_out: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(len(self.cases[track]) * len(self.contenders[track]) for track in self.cases)

    def missing(self, cells: Iterable[Cell]) -> list[tuple[str, str, str]]:
        """Track, contender and case of what is not among the cells."""
        known = {(cell.track, cell.contender, cell.case) for cell in cells}
        planned = [
            (track, contender, case)
            for track, cases in self.cases.items()
            for contender in self.contenders[track]
            for case in cases
        ]
        return [cell for cell in planned if cell not in known]

    def regex(self, track: str) -> str:
        """What asv's ``--bench`` must match: this track's cells and no other."""
        cases = "|".join(map(re.escape, self.cases[track]))
        contenders = "|".join(map(re.escape, self.contenders[track]))
        return rf"^{re.escape(track)}\.\w+\.track_\w+\('(?:{cases})', '(?:{contenders})'\)$"


def plan(targets: tuple[str, ...], cases: tuple[str, ...], where: Place, minutes: float | None = None) -> Plan:
    """Which cells ``TRACK[/CONTENDER]`` targets and ``--case`` slugs mean on this place.

    Where nothing is named, tracks that take long are left out. With ``minutes`` the plan is cut to what should fit into
    them. Raises UnknownName, and ValueError where nothing is left to measure or a track names
    a case badly.
    """
    chosen: dict[str, tuple[str, ...]] = {}
    contenders: dict[str, tuple[str, ...]] = {}
    known: set[str] = set()
    left_out: list[str] = []
    for name, asked in select(targets).items():
        track = load_track(name)
        slugs, usable = parameters(track)
        known |= set(slugs)
        if track.on_request and minutes is not None and targets:
            raise ValueError(f"{name} takes {track.on_request}, and no few minutes are enough: leave --within out")
        if track.on_request and not targets and not cases:
            left_out.append(f"{name}: takes {track.on_request}; archbench run {name} measures it")
            continue
        left_out += [f"{name}/{odd}: its name is not a Python module name" for odd in asked if odd not in usable]
        contenders[name] = tuple(contender for contender in asked if contender in usable)
        elsewhere = {slug: track.skip(track.case(slug), where) for slug in slugs}
        wanted = [slug for slug in dict.fromkeys(cases or slugs) if slug in slugs]
        if cases:
            left_out += [f"case {slug}: {elsewhere[slug]}" for slug in wanted if elsewhere[slug] is not None]
        elif targets:
            reasons = Counter(reason for reason in elsewhere.values() if reason is not None)
            left_out += [f"{name}: {count} case{'s' * (count > 1)}: {reason}" for reason, count in reasons.items()]
        here = tuple(slug for slug in wanted if elsewhere[slug] is None)
        if here and contenders[name]:
            chosen[name] = here
    for slug in cases:
        if slug not in known:
            raise UnknownName(unknown("case", slug, known))
    if not chosen:
        raise ValueError("nothing to measure here: " + ("; ".join(left_out) or "no case is for this machine"))
    wanted_here = Plan(chosen, {name: contenders[name] for name in chosen}, tuple(left_out))
    return wanted_here if minutes is None else fitted(wanted_here, minutes)


def fitted(whole: Plan, minutes: float) -> Plan:
    """The first cases of a plan: those of every track in turn, while they fit into the minutes.

    A track lists its cases by importance. Every track keeps its first one, however short the time is.
    """
    left = minutes * 60 / CELL_S
    kept: dict[str, list[str]] = {track: [] for track in whole.cases}
    for turn in range(max(map(len, whole.cases.values()))):
        for track, slugs in whole.cases.items():
            cost = len(whole.contenders[track])
            if turn < len(slugs) and len(kept[track]) == turn and (turn == 0 or cost <= left):
                kept[track].append(slugs[turn])
                left -= cost
    dropped = {track: len(slugs) - len(kept[track]) for track, slugs in whole.cases.items()}
    said = [
        f"{track}: {count} of {count + len(kept[track])} cases, for want of time; archbench run {track} measures all"
        for track, count in dropped.items()
        if count
    ]
    cases = {track: tuple(slugs) for track, slugs in kept.items()}
    return replace(whole, cases=cases, left_out=(*whole.left_out, *said))
