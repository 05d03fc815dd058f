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
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from archbench.atomic import write_atomically
from archbench.hardware.agent.signed_branch import (
    BRANCHES,
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

FETCH_S = 1800.0
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
    with _alone(state):
        try:
            git = Git(state / "mirror.git", settings() | signers.config())
            begin(git)
            listed = git.text("ls-remote", "--heads", remote, f"{BRANCHES}*", timeout_s=FETCH_S)
        except GitFailed as failed:
            raise CannotCollect(f"{remote}: {failed}") from failed
        round_ = _Round(git, remote, Results(results, state, merge, validate, now), signers, state, accept, skip, now)
        tips = {ref.removeprefix(BRANCHES): tip for tip, ref in map(str.split, listed.splitlines())}
        for name in sorted(tips.keys() | round_.collected.keys()):
            round_.branch(name, tips.get(name))
        end(git)
        return round_.report()


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
        self.accepted: list[Accepted] = []
        self.skipped: list[str] = []
        try:
            self.collected: dict[str, str] = json.loads(self.notes.read_bytes())
        except FileNotFoundError:
            self.collected = {}

    def branch(self, name: str, tip: str | None) -> None:
        """Collect one branch, or quarantine where it stops."""
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
            for done, commit in enumerate(commits):
                behind = len(commits) - done - 1
                if self._chosen(commit, self.skip):
                    known = known_files(self.git, commit)
                    self.skipped.append(commit)
                else:
                    trusted = self._chosen(commit, self.accept)
                    delivery = examine(self.git, name, commit, last, known, self.signers, trusted=trusted)
                    self.results.take(delivery)
                    self.accepted.append(Accepted(name, delivery.run, commit, delivery.key))
                last = commit
                self._note(name, commit)
        except (Refused, GitFailed) as error:
            self.quarantine.put(name, commit, str(error), behind)
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

    def _note(self, name: str, commit: str) -> None:
        self.collected[name] = commit
        write_atomically(self.notes, json.dumps(self.collected, indent=1, sort_keys=True).encode() + b"\n")
        self.git("update-ref", f"refs/collected/{name}", commit)


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotCollect(f"another collect is at work in {state}") from None
        yield
