"""What results need to know of git: which commit, when, and whether the tree is the commit."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


class NoRepository(ValueError):
    """The folder is not in a git repository with at least one commit."""


@dataclass(frozen=True)
class Repository:
    """A git work tree."""

    top: Path

    @classmethod
    def containing(cls, folder: Path) -> Repository:
        """Raises NoRepository."""
        return cls(Path(_git(folder, "rev-parse", "--show-toplevel")))

    def head(self) -> str:
        """Full hash of HEAD. Raises NoRepository where there is no commit yet."""
        return _git(self.top, "rev-parse", "--verify", "HEAD")

    def date(self, commit: str) -> str:
        """Commit date, ISO 8601, or an empty string for a commit this clone does not have."""
        try:
            return _git(self.top, "show", "-s", "--format=%cI", f"{commit}^{{commit}}")
        except NoRepository:
            return ""

    def is_dirty(self) -> bool:
        """Whether tracked files differ from HEAD, results aside: they are what a run writes."""
        return bool(_git(self.top, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!reports/results"))


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise NoRepository("git is not installed") from error
    except subprocess.CalledProcessError as error:
        raise NoRepository(f"git {arguments[0]} in {folder} failed: {error.stderr.strip()}") from error
    return done.stdout.strip()
