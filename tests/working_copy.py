"""A copy of the working tree with its own import path, history and home: for tests that change files or run asv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("hardware", "kernels", "models", "reports")


@dataclass(frozen=True)
class Copy:
    """A copy of the working tree with a git history of one commit, importable on its own."""

    top: Path
    packages: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which ``archbench`` is this copy and nothing of the user's is read or written."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ASV_", "ARCHBENCH_", "GIT_"))}
        cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        path = str(self.packages)  # asv drops PYTHONPATH and takes its own variable instead
        return kept | {"PYTHONPATH": path, "ASV_PYTHONPATH": path, "HOME": str(self.home), "XDG_CACHE_HOME": cache}

    def run(self, *arguments: str, check: bool = True, timeout: float = 500) -> subprocess.CompletedProcess[str]:
        """``python ARGUMENTS`` in the copy."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.top,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise AssertionError(f"{arguments} exited with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def archbench(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``archbench ARGUMENTS`` in the copy."""
        return self.run("-m", "archbench", *arguments, check=check)

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments]
        return subprocess.run(command, cwd=self.top, check=True, capture_output=True, text=True).stdout.strip()


def link_packages(top: Path, packages: Path) -> None:
    """Make a folder for PYTHONPATH in which ``archbench`` is the tree at ``top``."""
    (packages / "archbench").mkdir(parents=True)
    for path in (top / "src" / "archbench").iterdir():
        (packages / "archbench" / path.name).symlink_to(path)
    for room in ROOMS:
        (packages / "archbench" / room).symlink_to(top / room)


def copy_tree(folder: Path) -> Copy:
    """Copy what git tracks or would track, commit it, and link the rooms into one package."""
    top, packages, home = folder / "tree", folder / "packages", folder / "home"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        if name.startswith("reports/results/") or not (ROOT / name).is_file():
            continue
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, top / name)
    home.mkdir()
    link_packages(top, packages)
    copy = Copy(top, packages, home)
    copy.git("init", "-q", "-b", "main")
    copy.git("add", "-A")
    copy.git("commit", "-qm", "copy")
    return copy
