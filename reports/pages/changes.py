"""What changed: ranks between the commits of a machine, and the board since it was last rendered; also as a feed.

Dates are those of runs and commits, never of the clock: rendering the same results again changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from archbench.reports import views
from archbench.reports.pages import Board, Output, digest
from archbench.reports.pages.html import render, track_path

MAX_COMMITS = 20  # per track and machine
MAX_ENTRIES = 50
MAX_LOG = 200


@dataclass(frozen=True)
class Change:
    """A sentence about one track on one machine."""

    date: str  # ISO 8601, of the run that showed it
    track: str
    machine: str
    commit: str
    text: str

    @property
    def identity(self) -> str:
        """Stays the same over renders: a feed reader shows an entry once."""
        return digest(self.track, self.machine, self.commit, self.text)


def outputs(board: Board) -> Iterator[Output]:
    ranks, log = rank_changes(board), _log(board)
    key = digest(ranks, log, board.address)
    yield Output(
        "changes.html", key, lambda: render("changes.html.j2", "changes.html", ranks=ranks[:MAX_ENTRIES], log=log)
    )
    updated = max((run.started for run in board.results.runs), default="1970-01-01T00:00:00+00:00")
    values: dict[str, Any] = {
        "entries": ranks[:MAX_ENTRIES],
        "updated": updated,
        "address": board.address,
        "path_of": track_path,
    }
    yield Output("feed.xml", digest(key, updated), lambda: render("feed.xml.j2", "feed.xml", **values))


def rank_changes(board: Board) -> list[Change]:
    """Newest first: who took or lost the first place of a track from one commit of a machine to the next."""
    found: list[Change] = []
    for (track, machine), rows in board.by_track_and_machine.items():
        commits = views.newest_commits(rows)[: MAX_COMMITS + 1][::-1]
        full = len({row.contender for row in views.current(rows) if row.status == "ok"})
        before: set[str] | None = None
        for commit in commits:
            own = [row for row in rows if row.commit == commit]
            if 2 * len({row.contender for row in own if row.status == "ok"}) < full:
                continue  # a run of a few contenders says nothing about the others
            first = {s.name for s in board.standings(track, machine, commit) if s.first}
            if before is not None and first != before and first:
                run = max(own, key=lambda row: row.run)
                date = str(run.host.get("measured") or run.date)
                found.append(Change(date, track, machine, commit, _sentence(before, first)))
            before = first or before
    return sorted(found, key=lambda change: (change.date, change.identity), reverse=True)


def _sentence(before: set[str], now: set[str]) -> str:
    gained, lost = sorted(now - before), sorted(before - now)
    parts = []
    if gained:
        parts.append(f"{_joined(gained)} {'is' if len(gained) == 1 else 'are'} now first")
    if lost:
        parts.append(f"{_joined(lost)} no longer")
    return ", ".join(parts) + f"; first: {_joined(sorted(now))}"


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def state(board: Board) -> dict[str, Any]:
    """What the next render has to know of this one: who was first, and the log so far."""
    return {"first": _first(board), "log": _log(board)}


def _first(board: Board) -> dict[str, list[str]]:
    found = {}
    for (track, machine), rows in board.by_track_and_machine.items():
        commit = views.main_commit(rows)
        found[f"{track} on {machine}"] = [
            commit,
            *sorted(s.name for s in board.standings(track, machine, commit) if s.first),
        ]
    return found


def _log(board: Board) -> list[list[str]]:
    """Lines of ``[date, text]``, newest first, of what renders into this folder have seen change."""
    old, log = board.before.get("first"), board.before.get("log")
    known: list[list[str]] = [entry for entry in log if _is_entry(entry)] if isinstance(log, list) else []
    if not isinstance(old, Mapping):
        return known
    now = _first(board)
    date = max((run.started for run in board.results.runs), default="")
    fresh = []
    for name, (commit, *first) in now.items():
        was = old.get(name)
        if was == [commit, *first]:
            continue
        text = f"{name}: first is {_joined(first)}" if first else f"{name}: nobody is ranked"
        if not isinstance(was, list) or not was:
            fresh.append([date, f"{text} (new)"])
        elif was[1:] != first:
            fresh.append([date, f"{text}; it was {_joined([str(name) for name in was[1:]] or ['nobody'])}"])
        else:
            fresh.append([date, f"{text}, as before, now at commit {commit[:10]}"])
    fresh += [[date, f"{name} is gone"] for name in sorted(set(old) - set(now)) if isinstance(name, str)]
    return [*fresh, *known][:MAX_LOG]


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
