"""Collecting: what the machines delivered joins the results where it is proved, and waits with its reason where not.

Every branch ``machine/<name>`` is fetched on its own into a bare mirror and read commit by commit behind the last one
that counted. A commit counts when ``signed_branch`` finds nothing against it and the results with it hold nothing that
the results without it do not: the judgement is the board's own reader's, passed in by the command line. The first
commit that does not count stops its branch, and no other branch.

Everything may be killed at any moment: results are written whole and first, what was collected is noted after them, and
collecting a commit twice gives the same results.

Source: the trust is that of OpenSSH's allowed_signers, ssh-keygen(1)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from archbench.atomic import write_atomically
from archbench.hardware.agent.signed_branch import (
    BRANCHES,
    Delivery,
    examine,
    is_machine,
    known_files,
    new_commits,
)
from archbench.hardware.agent.signed_commit import Refused, Signers
from archbench.hardware.agent.signed_git import Git, GitFailed
from archbench.hardware.agent.signed_report import Accepted, Collected, Quarantine
from archbench.hardware.agent.signed_repository import begin, end, settings
from archbench.hardware.agent.signed_results import Merge, Results, Validate

ASK_S = 120.0
FETCH_S = 1800.0
MOST, MOST_BYTES = 200, 64 << 20  # deliveries that are taken at once: each time all results are read
_INCOMING = "refs/incoming/"
_SHORT = re.compile(r"[0-9a-f]{7,40}")


class CannotCollect(ValueError):
    """Nothing was collected: the remote does not answer, or something is missing; the message says what."""


def collect(
    remote: str,
    results: Path,
    signers: Signers,
    state: Path,
    *,
    merge: Merge,
    validate: Validate,
    accept: Collection[str] = (),
    skip: Collection[str] = (),
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Collected:
    """Fetch every machine's branch, verify what is new, and merge what counts into a results folder.

    ``state`` is this collector's folder: mirror, what was collected, and the quarantine. ``accept`` names quarantined
    commits whose signature the owner vouches for: their rows are merged and not marked as verified. ``skip`` names
    those that are passed over for good. Raises CannotCollect, OSError.
    """
    for file in (signers.allowed, *([signers.revoked] if signers.revoked is not None else [])):
        if not file.is_file():
            raise CannotCollect(f"there is no {file}")
    odd = next((given for given in (*accept, *skip) if not _SHORT.fullmatch(given)), None)
    if odd is not None or remote.startswith("-"):
        raise CannotCollect(f"{odd or remote!r} is not {'a commit' if odd is not None else 'a remote'}")
    # git and ssh-keygen are told of these files; neither promises from where it reads a relative path.
    signers = Signers(signers.allowed.resolve(), signers.revoked and signers.revoked.resolve())
    with _alone(state) as lock:
        try:
            git = Git(state / "mirror.git", settings() | signers.config(), hold=[lock])
            begin(git)
            listed = git.text("ls-remote", "--heads", remote, f"{BRANCHES}*", timeout_s=ASK_S)
        except GitFailed as failed:
            raise CannotCollect(f"{remote}: {failed}") from failed
        _same_remote(state / "remote", remote)
        round_ = _Round(git, remote, Results(results, state, merge, validate, now), signers, state, accept, skip, now)
        tips = {ref.removeprefix(BRANCHES): tip for tip, ref in map(str.split, listed.splitlines())}
        for name in sorted(tips.keys() | round_.collected.keys()):
            round_.branch(name, tips.get(name))
        round_.settle()
        round_.results.tidy()
        end(git)
        return round_.report()


@dataclass(frozen=True)
class _Step:
    """A commit that counts as far as git can tell; ``delivery`` is None where the owner skips it."""

    machine: str
    commit: str
    delivery: Delivery | None
    behind: int

    @property
    def size(self) -> int:
        return sum(map(len, self.delivery.files.values())) if self.delivery is not None else 0


class _Round:
    """One collection: what it has found so far."""

    def __init__(
        self,
        git: Git,
        remote: str,
        results: Results,
        signers: Signers,
        state: Path,
        accept: Collection[str],
        skip: Collection[str],
        now: Callable[[], datetime],
    ) -> None:
        self.git = git
        self.remote = remote
        self.results = results
        self.signers = signers
        self.notes = state / "collected.json"
        self.quarantine = Quarantine(state / "quarantine", now)
        self.accept, self.skip = frozenset(accept), frozenset(skip)
        self.met: set[str] = set()
        self.steps: list[_Step] = []
        self.stopped: set[str] = set()
        self.accepted: list[Accepted] = []
        self.skipped: list[str] = []
        try:
            self.collected: dict[str, str] = json.loads(self.notes.read_bytes())
        except FileNotFoundError:
            self.collected = {}

    def branch(self, name: str, tip: str | None) -> None:
        """Read one branch to where it stops; what counts of it waits for ``settle``."""
        commit, behind = tip or self.collected.get(name, ""), 0
        try:
            if not is_machine(name):
                raise Refused("the branch's name is not one a machine can have")
            if tip is None:
                raise Refused("the branch was deleted at the remote; what was collected stays")
            self._fetch(name, tip)
            last = self._last(name, tip)
            commits = new_commits(self.git, last, tip)
            known = known_files(self.git, last)
            for done, commit in enumerate(commits, start=1):
                behind = len(commits) - done
                delivery = None
                if self._chosen(commit, self.skip):
                    known = known_files(self.git, commit)
                else:
                    trusted = self._chosen(commit, self.accept)
                    delivery = examine(self.git, name, commit, last, known, self.signers, trusted=trusted)
                self.steps.append(_Step(name, commit, delivery, behind))
                last = commit
                if len(self.steps) >= MOST or sum(step.size for step in self.steps) > MOST_BYTES:
                    self.settle()
                if name in self.stopped:
                    return
        except (Refused, GitFailed) as error:
            self._stop(name, commit, str(error), behind)

    def settle(self) -> None:
        """Take what waits into the results: all of it at once, or, where that does not fit, one by one."""
        steps, self.steps = self.steps, []
        try:
            self._take(steps)
        except Refused:
            for step in steps:
                if step.machine not in self.stopped:
                    try:
                        self._take([step])
                    except Refused as refused:
                        self._stop(step.machine, step.commit, str(refused), step.behind)

    def _take(self, steps: Sequence[_Step]) -> None:
        deliveries = [step.delivery for step in steps if step.delivery is not None]
        if deliveries:
            self.results.take(deliveries)
        self.accepted += [Accepted(found.machine, found.run, found.commit, found.key) for found in deliveries]
        self.skipped += [step.commit for step in steps if step.delivery is None]
        self.collected |= {step.machine: step.commit for step in steps}
        write_atomically(self.notes, json.dumps(self.collected, indent=1, sort_keys=True).encode() + b"\n")

    def _stop(self, name: str, commit: str, reason: str, behind: int) -> None:
        self.stopped.add(name)
        self.quarantine.put(name, commit, reason, behind)
        if is_machine(name) and self.git.commit_of(commit) is not None:
            self.git("update-ref", f"refs/quarantine/{name}", commit)

    def report(self) -> Collected:
        unmet = sorted(given for given in self.accept | self.skip if given not in self.met)
        return Collected(tuple(self.accepted), tuple(self.skipped), self.quarantine.settled(), tuple(unmet))

    def _fetch(self, name: str, tip: str) -> None:
        incoming = f"{_INCOMING}{name}"
        if self.git.commit_of(incoming) == tip:
            return
        asked = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", self.remote, f"+{BRANCHES}{name}:{incoming}"]
        try:
            self.git(*asked, timeout_s=FETCH_S)
        except GitFailed as failed:
            raise Refused(f"cannot be fetched: {failed}") from failed

    def _last(self, name: str, tip: str) -> str | None:
        """The last commit of a branch that counted. A collector that lost its notes finds it by the proofs."""
        noted = self.collected.get(name)
        if noted is not None:
            if self.git.commit_of(noted) is None:
                raise Refused(f"the history was rewritten: {noted[:12]}, the last commit that counted, is gone")
            return noted
        proved = self.results.proved(name)
        return next((c for c in reversed(new_commits(self.git, None, tip)) if c in proved), None)

    def _chosen(self, commit: str, named: Iterable[str]) -> bool:
        """Whether the owner named this commit."""
        found = {given for given in named if commit.startswith(given)}
        self.met |= found
        return bool(found)


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[int]:
    """Hold the folder's lock, together with every git that is started meanwhile. Raises CannotCollect."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotCollect(f"another collect is at work in {state}") from None
        yield file.fileno()


def _same_remote(note: Path, remote: str) -> None:
    """A collector's notes are of one remote: branches that another one lacks would look deleted."""
    if not note.exists():
        write_atomically(note, f"{remote}\n".encode())
    elif note.read_text(encoding="utf-8") != f"{remote}\n":
        raise CannotCollect(
            f"{note.parent} collects from {note.read_text(encoding='utf-8').strip()}: give another --state for another "
            f"remote, or, where the same one has a new address, write that into {note}"
        )
