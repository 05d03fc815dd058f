"""The clone commits are measured in: fetched, checked out, and made again where a loss of power broke it.

Nothing in it is worth keeping, so nothing is repaired but leftover locks. Whoever calls holds the agent's lock, which
git's processes inherit: a lock file that lies about then is nobody's.

Source: git-clone(1), git-fetch(1), git-checkout(1)
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from archbench.hardware.agent.config import AgentConfig
from archbench.hardware.agent.run_folder import header_of
from archbench.hardware.agent.signed_git import Git, GitFailed

NETWORK_S = 1800.0  # a first clone over a slow line
LOCAL_S = 600.0  # a checkout onto a slow card
_TIP = "refs/remotes/origin/agent"  # the measured branch, as it was last fetched
_DELIVERED = "refs/remotes/origin/delivered"
# A commit that changes only these measures the same: among them are the results that the agent itself delivered.
_NOT_MEASURED = ("docs", "reports", "tests", ".github", ".ci", "*.md")


class Source:
    """The clone in the state folder."""

    def __init__(self, config: AgentConfig, hold: Collection[int] = ()) -> None:
        self._config = config
        self._hold = hold
        self.top = config.state / "repository"
        self._git = self._at(self.top)

    def _at(self, top: Path) -> Git:
        # Configured here and not in its own file, which may be cut short; no hook of whoever prepared a template runs.
        settings = {"core.hooksPath": os.devnull, "gc.auto": "0", "maintenance.auto": "0", "core.fsync": "all"}
        stalled = {"http.lowSpeedLimit": "1000", "http.lowSpeedTime": "60"}  # bytes per second, seconds
        return Git(top / ".git", settings | stalled, hold=self._hold)

    def fetch(self) -> str:
        """Bring the branch up to date. Why that could not be done, or nothing. Raises OSError."""
        self._unlock()
        try:
            if not self._is_whole():
                self._clone()
            self._fetch(self._git)
        except GitFailed as failed:
            return str(failed)
        return ""

    def _fetch(self, git: Git) -> None:
        wanted = f"+refs/heads/{self._config.branch}:{_TIP}"
        git("fetch", "--quiet", "--no-tags", self._config.repository, wanted, timeout_s=NETWORK_S)

    def _clone(self) -> None:
        """Make the clone anew; the old one goes when the branch is in the new one. Raises GitFailed, OSError."""
        fresh = self.top.with_name(".repository.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        made = Git(fresh / ".git", hold=self._hold)
        made("init", "--quiet", "--bare")
        made("config", "core.bare", "false")  # a work tree lies around it after all, wherever it is moved to
        self._fetch(self._at(fresh))
        shutil.rmtree(self.top, ignore_errors=True)
        os.rename(fresh, self.top)

    def _is_whole(self) -> bool:
        """Whether the branch's history can be read, and nothing of it is missing."""
        if not (self.top / ".git").is_dir():
            return False
        try:
            done = self._git.ask("rev-list", "--objects", "--quiet", f"{_TIP}^{{commit}}", timeout_s=LOCAL_S)
        except GitFailed:
            return False
        return done.returncode == 0

    def _unlock(self) -> None:
        for lock in (self.top / ".git").rglob("*.lock"):
            lock.unlink(missing_ok=True)

    @property
    def is_there(self) -> bool:
        """Whether any commit is known."""
        return self._git.commit_of(_TIP) is not None if self.top.is_dir() else False

    def newest(self) -> list[str]:
        """The branch's newest commits that can measure something else than the one before, newest first.

        Raises GitFailed.
        """
        asked = ["rev-list", "--first-parent", f"--max-count={self._config.depth}"]
        asked += [f"--since={self._config.since}"] if self._config.since else []
        left_out = [f":(top,exclude){name}" for name in _NOT_MEASURED]
        return self._git.text(*asked, _TIP, "--", ":(top)", *left_out, timeout_s=LOCAL_S).split()

    def date(self, commit: str) -> datetime:
        """When a commit was made. Raises GitFailed."""
        return datetime.fromtimestamp(int(self._git.text("show", "-s", "--format=%ct", commit)), UTC)

    def full(self, name: str) -> str | None:
        """The full hash of a commit, or None where none of that name is known."""
        return self._git.commit_of(name) if not name.startswith("-") else None

    def check_out(self, commit: str) -> None:
        """Make the work tree the commit, and nothing else. Raises GitFailed, OSError."""
        try:
            self._check_out(commit)
        except GitFailed:  # a file's content may be broken where the history is whole
            self._clone()
            self._check_out(commit)

    def _check_out(self, commit: str) -> None:
        # git takes the work tree from its environment alone: without it, wherever we are would be overwritten.
        tree = {"GIT_WORK_TREE": str(self.top)}
        self._git("checkout", "--quiet", "--force", "--detach", commit, environment=tree, timeout_s=LOCAL_S)
        self._git("clean", "-ffdq", environment=tree, timeout_s=LOCAL_S)

    def delivered(self) -> dict[str, str]:
        """The commits the remote holds results of this machine for, and the run of each.

        Asked once, by an agent that remembers nothing: the card is new, or its file was lost. Raises GitFailed.
        """
        branch = f"refs/heads/machine/{self._config.machine}"
        if not self._git.text("ls-remote", self._config.remote, branch, timeout_s=NETWORK_S):
            return {}
        self._git("fetch", "--quiet", "--no-tags", self._config.remote, f"+{branch}:{_DELIVERED}", timeout_s=NETWORK_S)
        found = {}
        for path in self._git.text("ls-tree", "-r", "--name-only", _DELIVERED).splitlines():
            if "/cells/" in path and path.endswith(".jsonl"):
                with contextlib.suppress(ValueError):
                    header = header_of(self._git("cat-file", "blob", f"{_DELIVERED}:{path}"))
                    found[header.commit] = header.run
        return found
