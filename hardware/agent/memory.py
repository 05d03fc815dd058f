"""What the agent knows of the commits it met, in one file that is replaced whole: ``state.json``.

Events are ordered by a number that only grows, because a board without a battery for its clock may wake up yesterday.
A commit is noted as begun before anything is done for it: who finds it so knows that power was lost, and how often.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from archbench import __version__
from archbench.atomic import write_atomically

FILE = "state.json"
SCHEMA = 1
REMEMBERED = 500  # commits
Outcome = Literal["begun", "failed", "done", "skipped"]


class Met(msgspec.Struct, frozen=True, kw_only=True):
    """A commit and how it fared.

    ``attempts`` failed and ``deaths`` ended with the machine or the agent, in a row and without a finished cell more.
    """

    commit: str
    outcome: Outcome
    number: int
    when: str  # UTC, ISO 8601, by this machine's clock
    suites: tuple[str, ...]
    attempts: int = 0
    deaths: int = 0
    cells: int = 0
    run: str = ""
    reason: str = ""
    agent: str = ""  # which code of the agent gave it up


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """One look for new commits. ``whole``: nothing went wrong and nothing was in the way."""

    number: int
    when: str
    whole: bool
    measured: int = 0
    reasons: tuple[str, ...] = ()


class State(msgspec.Struct, kw_only=True):
    """The file."""

    schema: int = SCHEMA
    machine: str = ""
    number: int = 0
    commits: dict[str, Met] = {}
    last: Look | None = None
    last_whole: str = ""  # when the last whole look ended


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def own_code() -> str:
    """A digest of the agent's own code: what was given up is tried again by another one."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return f"{__version__}-{digest.hexdigest()[:12]}"


def read(folder: Path) -> State:
    """The state in a folder; an empty one where there is none. Raises ValueError for a file that is none, OSError."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=State)
    except FileNotFoundError:
        return State()
    except msgspec.DecodeError as error:
        raise ValueError(f"{folder / FILE} is not the agent's state: {error}") from error


class Memory:
    """The state of the agent that holds the lock; every change is on the disk when its call returns. Raises OSError."""

    def __init__(self, folder: Path, machine: str, suites: tuple[str, ...]) -> None:
        self.folder, self.suites = folder, suites
        self.forgot = ""  # why nothing is remembered, where something should be
        try:
            self.state = read(folder)
        except ValueError as error:
            self.state, self.forgot = State(), str(error)
        self.was = self.state.machine  # what the machine was called, where it was called something else
        if self.was in ("", machine):
            self.was, self.state.machine = "", machine
        else:
            self.state = State(machine=machine, number=self.state.number)

    @property
    def is_new(self) -> bool:
        return not self.state.commits

    def met(self, commit: str) -> Met | None:
        return self.state.commits.get(commit)

    def note(
        self,
        commit: str,
        outcome: Outcome,
        *,
        attempts: int = 0,
        deaths: int = 0,
        cells: int = 0,
        run: str = "",
        reason: str = "",
    ) -> None:
        """Remember how a commit fares with the suites of today."""
        self.state.number += 1
        met = Met(
            commit=commit,
            outcome=outcome,
            number=self.state.number,
            when=now(),
            suites=self.suites,
            attempts=attempts,
            deaths=deaths,
            cells=cells,
            run=run,
            reason=reason,
            agent=own_code() if outcome == "skipped" else "",
        )
        known = sorted({**self.state.commits, commit: met}.values(), key=lambda m: m.number)
        self.state.commits = {m.commit: m for m in known[-REMEMBERED:]}
        self._save()

    def forget(self, commit: str) -> None:
        """A commit is as good as new."""
        if self.state.commits.pop(commit, None) is not None:
            self._save()

    def looked(self, measured: int, reasons: tuple[str, ...]) -> Look:
        """Remember a look."""
        self.state.number += 1
        look = Look(number=self.state.number, when=now(), whole=not reasons, measured=measured, reasons=reasons)
        self.state.last = look
        if look.whole:
            self.state.last_whole = look.when
        self._save()
        return look

    def _save(self) -> None:
        write_atomically(self.folder / FILE, msgspec.json.format(msgspec.json.encode(self.state), indent=1) + b"\n")
