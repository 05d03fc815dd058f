"""The interpreter a commit is measured with, and the variables its run gets.

The agent keeps a virtual environment of its own and installs a commit's requirements into it, at the versions the
commit pins; commits that require the same share it. Where the configuration names an interpreter, that one must have
what a run needs, and only the code is the commit's: its packages are put before those the interpreter has.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from archbench.atomic import write_atomically
from archbench.hardware.agent.child import supervise
from archbench.hardware.agent.config import AgentConfig

DECLARES = ("pyproject.toml", "setup.py", "constraints.txt")  # what says what a commit requires
_TAKEN_OUT = ("GIT_", "PYTHON", "ASV_", "ARCHBENCH_RUN_FILE", "VIRTUAL_ENV")
_NO_ROOM = ("benchmarks", "tests")


class CannotInstall(RuntimeError):
    """What a commit requires is not there; the message says why."""


@dataclass(frozen=True)
class Interpreter:
    """How a commit's ``archbench`` is run."""

    python: str
    variables: dict[str, str]


class Environment:
    """The interpreter of an agent."""

    def __init__(self, config: AgentConfig, log: Path, hold: Collection[int] = ()) -> None:
        self._config, self._log, self._hold = config, log, hold
        self._folder = config.state / "venv"
        self._mark = self._folder / "installed"

    def ready(self, top: Path) -> Interpreter:
        """What to run the commit that is checked out at ``top`` with. Raises CannotInstall, OSError."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith(_TAKEN_OUT)}
        variables |= {"ARCHBENCH_MACHINE": self._config.machine, **self._config.environment}
        if self._config.python:
            packages = str(self._link(top))  # asv drops PYTHONPATH and takes its own variable instead
            return Interpreter(self._config.python, variables | {"PYTHONPATH": packages, "ASV_PYTHONPATH": packages})
        python = str(self._folder / "bin" / "python")
        wanted = self._digest(top)
        if not self._works(python) or self._installed() != wanted:
            self._install(top, python, variables)
            write_atomically(self._mark, wanted.encode())
        return Interpreter(python, variables)

    def _digest(self, top: Path) -> str:
        digest = hashlib.sha256(repr((sys.version, self._config.extras)).encode())
        for name in DECLARES:
            digest.update((top / name).read_bytes() if (top / name).is_file() else b"")
        return digest.hexdigest()

    def _installed(self) -> str:
        try:
            return self._mark.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return ""

    @staticmethod
    def _works(python: str) -> bool:
        """False too where the system's Python, which it links to, was upgraded away."""
        try:
            return subprocess.run([python, "-c", ""], capture_output=True, timeout=60).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False

    def _install(self, top: Path, python: str, variables: dict[str, str]) -> None:
        self._mark.unlink(missing_ok=True)
        if not self._works(python):
            self._do([sys.executable, "-m", "venv", "--clear", str(self._folder)], top, variables)
        pins = ["-c", "constraints.txt"] if (top / "constraints.txt").is_file() else []
        extras = f"[{','.join(self._config.extras)}]" if self._config.extras else ""
        options = ["--quiet", "--disable-pip-version-check", "--no-input"]
        self._do([python, "-m", "pip", "install", *options, *pins, "-e", f".{extras}"], top, variables)

    def _do(self, command: list[str], top: Path, variables: dict[str, str]) -> None:
        limit = self._config.install_deadline_s
        ended = supervise(command, folder=top, environment=variables, log=self._log, deadline_s=limit, hold=self._hold)
        if ended.code is None:
            raise CannotInstall(f"installing what it requires took more than {limit:g} s: {ended.said}")
        if ended.code:
            raise CannotInstall(f"what it requires cannot be installed: {ended.said}")

    def _link(self, top: Path) -> Path:
        """A folder in which ``archbench`` is the checkout, as its setup.py maps it: rooms beside what is in src."""
        if not (top / "src" / "archbench").is_dir():
            raise CannotInstall("it has no src/archbench: it is not a commit of this project")
        packages = self._config.state / "packages"
        shutil.rmtree(packages, ignore_errors=True)
        package = packages / "archbench"
        package.mkdir(parents=True)
        for path in (top / "src" / "archbench").iterdir():
            (package / path.name).symlink_to(path)
        for path in top.iterdir():
            if (path / "__init__.py").is_file() and path.name not in _NO_ROOM:
                (package / path.name).symlink_to(path)
        return packages
