"""What results need to know of git: which commit, when, and whether the tree is the commit."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

CODE_FOLDERS = ("benchmarks", "hardware", "kernels", "models", "reports", "src")
CODE_SUFFIXES = (".cpp", ".cu", ".py", ".toml")
WRITTEN = ("reports/results", "reports/site")


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
        """Whether the code differs from HEAD: a tracked file changed, or a source file git does not know yet.

        Results and the rendered board are left out: they are what a run writes.
        """
        asked = [".", *(f":!{folder}" for folder in WRITTEN)]
        status = _git(self.top, "status", "--porcelain", "-z", "--untracked-files=all", "--", *asked)
        return any(not entry.startswith("?? ") or _is_code(entry[3:]) for entry in status.split("\0") if entry)

    def tracks(self, file: Path) -> bool:
        """Whether git knows this file as one of the work tree."""
        try:
            return bool(_git(self.top, "ls-files", "--", str(file)))
        except NoRepository:  # it lies outside
            return False


def _is_code(path: str) -> bool:
    return path.startswith(tuple(f"{folder}/" for folder in CODE_FOLDERS)) and path.endswith(CODE_SUFFIXES)


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise NoRepository("git is not installed") from error
    except subprocess.CalledProcessError as error:
        raise NoRepository(f"git {arguments[0]} in {folder} failed: {error.stderr.strip()}") from error
    return done.stdout.rstrip("\n")
