"""Delivering: the runs that wait become signed commits on the machine's branch, and the remote is seen to have them.

Every delivery begins with what the remote holds and puts what is missing on top of it, one commit a run. So nothing has
to be remembered: a push that arrived just before the power went is found there, a card that was restored to an older
day goes on from the remote's day, and a remote that was restored gets back what it had. The bare repository beside the
outbox is a tool, not a store: when a power cut broke it, it is made again.

Source: git-commit-tree(1), git-mktree(1), git-push(1)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from archbench.hardware.agent.config import AgentConfig
from archbench.hardware.agent.keys import read_key
from archbench.hardware.agent.signed_branch import BRANCHES, RUNS
from archbench.hardware.agent.signed_git import Git, GitFailed
from archbench.hardware.agent.signed_repository import begin, end, settings

ASK_S = 60.0  # what the remote may take to say where the branch is
NETWORK_S = 900.0  # what a push or a fetch may take
PUSHES = 3  # in one delivery, where somebody else pushed in between
LOOSE = 2000  # objects, before they are packed
_SEEN = "refs/archbench/remote"  # the branch as it was last fetched
_DELIVERED = "refs/archbench/delivered"  # the last commit the remote was seen to hold


class Courier:
    """One delivery, by who holds the outbox's lock."""

    def __init__(self, config: AgentConfig, folder: Path, lock: int) -> None:
        self.machine = config.machine
        self.remote = config.remote
        self.branch = BRANCHES + config.machine
        self.key = config.key
        signing = {"gpg.format": "ssh", "user.signingKey": str(config.key)}
        self.git = Git(folder / "repository.git", settings() | signing, hold=[lock])

    def deliver(self, waiting: Mapping[str, Path]) -> tuple[tuple[str, ...], str]:
        """Deliver runs by name; gives those the remote has, and why not the others.

        Raises GitFailed, OSError, ValueError where nobody can know.
        """
        read_key(self.key, self.machine)
        begin(self.git)
        trees = {run: self._write_run(folder) for run, folder in waiting.items()}
        for _ in range(PUSHES + 1):
            tip = self._fetch()
            new = self._commit(tip, trees)
            if new == tip:
                return self._confirmed(tip, trees)
            try:
                self.git("push", "--quiet", "--no-verify", self.remote, f"{new}:{self.branch}", timeout_s=NETWORK_S)
            except GitFailed:
                # The answer may have been lost and not the push, or somebody was quicker: the remote knows.
                if self._remote_tip() == tip:
                    raise
        raise GitFailed("the remote does not show what was pushed to it")

    def _confirmed(self, tip: str | None, trees: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
        held = self._runs(tip)
        sent = tuple(run for run, tree in trees.items() if held[run] == tree)
        if tip is not None:
            self.git("update-ref", _DELIVERED, tip)
        self._pack()
        end(self.git)
        other = next((run for run in trees if run not in sent), "")
        return sent, f"the remote holds something else under the name of run {other}" if other else ""

    def _remote_tip(self) -> str | None:
        listed = self.git.text("ls-remote", self.remote, self.branch, timeout_s=ASK_S)
        return next((line.split()[0] for line in listed.splitlines() if line.endswith(f"\t{self.branch}")), None)

    def _fetch(self) -> str | None:
        """The branch as the remote has it now, with its objects here. Raises GitFailed."""
        tip = self._remote_tip()
        if tip is None:
            return None
        if self.git.commit_of(self.branch) == tip:  # what was pushed is here already
            self.git("update-ref", _SEEN, tip)
        elif self.git.commit_of(_SEEN) != tip:
            asked = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", self.remote, f"+{self.branch}:{_SEEN}"]
            self.git(*asked, timeout_s=NETWORK_S)
        return self.git.commit_of(_SEEN)

    def _runs(self, commit: str | None) -> dict[str, str]:
        """The runs of a commit, with the tree that is each one's content."""
        if commit is None:
            return {}
        listed = self.git("ls-tree", "-z", f"{commit}:{RUNS}").decode().split("\0")
        return {name: head.split()[2] for head, _, name in (entry.partition("\t") for entry in listed if entry)}

    def _commit(self, tip: str | None, trees: Mapping[str, str]) -> str | None:
        """What to push: the remote's branch with what it lacks on top."""
        delivered = self.git.commit_of(_DELIVERED)
        base, owed = tip, {}
        if delivered is not None and (tip is None or self.git.is_ancestor(tip, delivered)):
            base = delivered  # the remote was set back: it gets the very commits it had
        elif delivered is not None and tip is not None and not self.git.is_ancestor(delivered, tip):
            owed = self._runs(delivered)  # its history is another one: what it had goes on top
        held = self._runs(base)
        for run, tree in sorted({**owed, **trees}.items()):
            if run not in held:
                held[run] = tree
                base = self._signed(run, held, base)
        if base is not None:
            self.git("update-ref", self.branch, base)
        return base

    def _signed(self, run: str, held: Mapping[str, str], parent: str | None) -> str:
        runs = self._tree({name: ("040000", "tree", tree) for name, tree in held.items()})
        top = self._tree({RUNS: ("040000", "tree", runs)})
        person = {
            f"GIT_{who}_{what}": text
            for who in ("AUTHOR", "COMMITTER")
            for what, text in (("NAME", self.machine), ("EMAIL", "archbench@localhost"))
        }
        after = ["-p", parent] if parent is not None else []
        made = self.git("commit-tree", "-S", *after, "-m", f"run {run}", top, environment=person)
        return made.decode().strip()

    def _write_run(self, folder: Path) -> str:
        """A run's files as a tree of git."""
        entries = {}
        files = []
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.is_dir():
                entries[entry.name] = ("040000", "tree", self._write_run(Path(entry.path)))
            else:
                files.append(entry)
        paths = "".join(f"{entry.path}\n" for entry in files).encode()
        blobs = self.git("hash-object", "-w", "--no-filters", "--stdin-paths", stdin=paths).decode().split()
        entries |= {entry.name: ("100644", "blob", blob) for entry, blob in zip(files, blobs, strict=True)}
        return self._tree(entries)

    def _tree(self, entries: Mapping[str, tuple[str, str, str]]) -> str:
        lines = "".join(f"{mode} {kind} {held}\t{name}\0" for name, (mode, kind, held) in entries.items())
        return self.git("mktree", "-z", stdin=lines.encode()).decode().strip()

    def _pack(self) -> None:
        """Pack what has become many small files; commits that were never pushed go."""
        loose = self.git.text("count-objects").split()[0]
        if int(loose) > LOOSE:
            self.git("gc", "--quiet", "--prune=now", timeout_s=NETWORK_S)
