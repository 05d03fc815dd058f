"""Git as a store of signed commits: plumbing on a bare repository, one process per question.

There is no work tree and no index, so there is nothing a power cut could leave half written but objects, and those are
named by what they hold. Every call has a time limit after which its whole process group ends; nothing ever asks a
person for a password. Only the standard library is used: this file is part of the ``pre-receive`` hook.

Source: git's plumbing, https://git-scm.com/docs/git#_low_level_commands_plumbing
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

OLDEST_GIT = (2, 34)  # the first that signs and verifies with SSH keys
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
_SSH = "ssh -oBatchMode=yes -oConnectTimeout=30 -oServerAliveInterval=15 -oServerAliveCountMax=4"
_KEPT = ("GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "GIT_EXEC_PATH")


class GitFailed(Exception):
    """git said no, or nothing in time; the message is its reason in one line."""


@dataclass(frozen=True)
class Git:
    """A bare repository. Calling it runs git there: ``git("rev-parse", "HEAD")`` gives what was printed."""

    repository: Path
    config: Mapping[str, str] = field(default_factory=dict)
    inherit: bool = False  # a hook sees the objects that are being pushed through its own environment only
    hold: Collection[int] = ()  # descriptors that git's processes keep open: a lock that outlives a killed agent

    def __call__(
        self,
        *arguments: str,
        stdin: bytes = b"",
        timeout_s: float = 120.0,
        environment: Mapping[str, str] | None = None,
    ) -> bytes:
        """What git printed. Raises GitFailed."""
        done = self.ask(*arguments, stdin=stdin, timeout_s=timeout_s, environment=environment)
        if done.returncode:
            raise GitFailed(f"git {arguments[0]}: {reason_of(done.stderr) or f'exit {done.returncode}'}")
        return done.stdout

    def ask(
        self,
        *arguments: str,
        stdin: bytes = b"",
        timeout_s: float = 120.0,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run git and give what it said, whatever its exit. Raises GitFailed where it did not end in time."""
        command = ["git", f"--git-dir={self.repository}"]
        command += [part for key, value in self.config.items() for part in ("-c", f"{key}={value}")]
        try:
            process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment() | dict(environment or {}),
                start_new_session=True,
                pass_fds=tuple(self.hold),
            )
        except FileNotFoundError as error:
            raise GitFailed("git is not installed") from error
        with process:
            try:
                out, err = process.communicate(stdin, timeout_s)
            except subprocess.TimeoutExpired as error:
                raise GitFailed(f"git {arguments[0]}: no answer in {timeout_s:g} s") from error
            finally:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def text(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """What git printed, as text without the last line's end. Raises GitFailed."""
        return self(*arguments, timeout_s=timeout_s).decode("utf-8", "replace").rstrip("\n")

    def commit_of(self, ref: str) -> str | None:
        """The commit a ref names, or None where there is no such ref or no such commit."""
        done = self.ask("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
        return done.stdout.decode().strip() if done.returncode == 0 else None

    def is_ancestor(self, old: str, new: str) -> bool:
        """Whether ``new`` builds on ``old``, or is it. Raises GitFailed."""
        done = self.ask("merge-base", "--is-ancestor", old, new)
        if done.returncode > 1:
            raise GitFailed(f"git merge-base: {reason_of(done.stderr)}")
        return done.returncode == 0

    def _environment(self) -> dict[str, str]:
        found = {
            name: value
            for name, value in os.environ.items()
            if self.inherit or not name.startswith("GIT_") or name in _KEPT
        }
        found.setdefault("GIT_SSH_COMMAND", _SSH)
        return found | {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_REPLACE_OBJECTS": "1", "GIT_ADVICE": "0"}


def reason_of(stderr: bytes) -> str:
    """The line of git's complaint that says why: the hook's own word, the first error, or the last line."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    objects = ("error: object ", "remote: error: object ")  # of fsck, before the line that says it found something
    for start in ("remote: archbench: ", *objects, "remote: error: ", "fatal: ", "error: ", "remote: "):
        for line in lines:
            if line.startswith(start):
                return line.removeprefix("remote: ")[:500]
    return lines[-1][:500] if lines else ""


def require_git() -> tuple[int, int]:
    """git's version. Raises GitFailed where it is missing or too old to know SSH signatures."""
    try:
        done = subprocess.run(["git", "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise GitFailed("git is not installed") from error
    match = re.search(r"(\d+)\.(\d+)", done.stdout)
    version = (int(match[1]), int(match[2])) if match is not None else (0, 0)
    if version < OLDEST_GIT:
        wanted = ".".join(map(str, OLDEST_GIT))
        raise GitFailed(f"needs git {wanted} or newer, here is {done.stdout.strip() or 'none'}")
    return version
