"""Machines that deliver, and what somebody could do to a branch: commits made byte by byte, without asking git.

Legend of trees: a dict by name of ``bytes`` (a file), a dict (a folder), or ``Entry`` (any mode and any object).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from archbench.cells import encode
from archbench.hardware.agent.collect import collect
from archbench.hardware.agent.config import AgentConfig
from archbench.hardware.agent.keys import Key, ensure_key
from archbench.hardware.agent.outbox import Outbox
from archbench.hardware.agent.signed_commit import Signers
from archbench.hardware.agent.signed_report import Collected
from archbench.reports.merge import merge
from archbench.reports.validate import validate
from results_builder import cell, note, run

DATE = 1_767_400_000  # of forged commits: 2026-01-03
NOW = datetime(2026, 2, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Entry:
    """A tree's entry as it is, sane or not."""

    mode: str
    identity: str


Tree = Mapping[str, Any]


def git(folder: Path, *arguments: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", f"--git-dir={folder}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, input=stdin, env=clean, timeout=120)
    assert not check or done.returncode == 0, (arguments, done.stderr)
    return done


def bare(folder: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", "--bare", str(folder)], check=True)
    return folder


def is_clean(repository: Path) -> bool:
    """Whether git finds nothing wrong with any object that is there."""
    return git(repository, "fsck", "--full", "--strict", "--no-dangling", check=False).returncode == 0


def run_bytes(machine: str, identity: str, **changes: Any) -> bytes:
    """A run file with samples of its own."""
    records = [run(machine, identity, **changes), note(), cell("base"), cell("fast", 0.5)]
    return b"".join(encode(record) + b"\n" for record in records)


def run_tree(machine: str, identity: str, **changes: Any) -> dict[str, Any]:
    """What a run leaves, as the folder ``runs/<run>`` of a branch."""
    return {
        machine: {
            "machine.json": b'{"cpu": "Cortex-A76", "machine": "%s", "version": 1}' % machine.encode(),
            "cells": {f"{identity}.jsonl": run_bytes(machine, identity, **changes)},
        }
    }


def plant(folder: Path, tree: Tree) -> Path:
    """A tree as files."""
    for name, held in tree.items():
        if isinstance(held, bytes):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(held)
        else:
            plant(folder / name, held)
    return folder


@dataclass
class Forge:
    """A bare repository whose objects are written directly: whatever git would refuse to make can be made."""

    repository: Path

    def write(self, kind: str, content: bytes) -> str:
        whole = f"{kind} {len(content)}\0".encode() + content
        identity = hashlib.sha1(whole).hexdigest()
        path = self.repository / "objects" / identity[:2] / identity[2:]
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(zlib.compress(whole, 1))
        return identity

    def tree(self, tree: Tree) -> str:
        entries = []
        for name, held in tree.items():
            if isinstance(held, bytes):
                mode, identity = "100644", self.write("blob", held)
            elif isinstance(held, Entry):
                mode, identity = held.mode, held.identity
            else:
                mode, identity = "40000", self.tree(held)
            raw = os.fsencode(name)
            entries.append((raw + (b"/" if mode == "40000" else b""), mode.encode() + b" " + raw, identity))
        return self.write("tree", b"".join(head + b"\0" + bytes.fromhex(i) for _, head, i in sorted(entries)))

    def commit(
        self,
        tree: Tree,
        parents: Sequence[str] = (),
        key: Key | None = None,
        *,
        date: int = DATE,
        namespace: str = "git",
        headers: bytes = b"",
        signature: bytes | None = None,
    ) -> str:
        """A commit, signed where there is a key. ``headers`` are signed too; a ``signature`` is put in as it is."""
        lines = [b"tree " + self.tree(tree).encode(), *(b"parent " + parent.encode() for parent in parents)]
        lines += [b"%s A machine <a@b> %d +0000" % (who, date) for who in (b"author", b"committer")]
        head = b"\n".join(lines) + b"\n" + headers
        message = b"\nrun\n"
        if key is not None and signature is None:
            command = ["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", str(key.path)]
            signature = subprocess.run(command, input=head + message, capture_output=True, check=True).stdout
        if signature is not None:
            head += b"gpgsig " + signature.rstrip(b"\n").replace(b"\n", b"\n ") + b"\n"
        return self.write("commit", head + message)

    def point(self, branch: str, commit: str) -> None:
        path = self.repository / "refs" / "heads" / branch
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit + "\n")


@dataclass
class World:
    """A remote, machines that deliver to it, and an owner who collects."""

    folder: Path

    def __post_init__(self) -> None:
        self.remote = self.folder / "remote.git"
        self.allowed = self.folder / "allowed_signers"
        self.revoked = self.folder / "revoked_keys"
        self.results = self.folder / "results"
        self.state = self.folder / "collector"
        if not self.remote.exists():  # another process may have made it
            bare(self.remote)
        self.allowed.touch()

    def key(self, machine: str, *, allow: bool = True) -> Key:
        """The machine's key, known to the owner."""
        key = ensure_key(self.folder / "keys" / machine, machine)
        if allow and key.public not in self.allowed.read_text():
            self.allowed.write_text(self.allowed.read_text() + f"{key.allowed_signers_line}\n")
        return key

    def outbox(self, machine: str, state: str = "") -> Outbox:
        return Outbox(self.config(machine, state))

    def config(self, machine: str, state: str = "") -> AgentConfig:
        return AgentConfig(
            state=self.folder / (state or f"state-{machine}"),
            machine=machine,
            repository="unused",
            remote=str(self.remote),
            suites=("attention",),
            key=self.key(machine).path,
        )

    def put(self, outbox: Outbox, identity: str, **changes: Any) -> None:
        """A finished run goes into the outbox; asked again, the same one does."""
        folder = self.folder / "finished" / outbox.config.state.name / identity
        if not folder.exists():
            plant(folder, run_tree(outbox.config.machine, identity, **changes))
        outbox.put(identity, folder)

    def collect(self, **changes: Any) -> Collected:
        signers = Signers(self.allowed, self.revoked if self.revoked.exists() else None)
        given: dict[str, Any] = {"merge": merge, "validate": problems, "now": lambda: NOW} | changes
        return collect(str(self.remote), self.results, signers, self.state, **given)

    def runs(self, machine: str) -> list[str]:
        """The runs at the remote, each as often as a commit adds it."""
        shown = git(self.remote, "log", "--format=", "--name-only", f"machine/{machine}", check=False).stdout
        return sorted(line.split("/")[1] for line in shown.splitlines() if "/cells/" in line)

    def collected(self, machine: str) -> list[str]:
        return sorted(path.stem for path in (self.results / machine / "cells").glob("*.jsonl"))


def problems(folder: Path) -> list[tuple[str, str]]:
    return [(found.path, found.reason) for found in validate(folder, now=NOW).quarantined]


def identity(number: int) -> str:
    """A run's name."""
    return f"20260102T{number:06d}Z-aaaaaa"


def names(*numbers: int) -> tuple[str, ...]:
    return tuple(map(identity, numbers))


def filled(world: World, *numbers: int, state: str = "") -> Outbox:
    """The outbox of ``pi-5`` after these runs were put into it."""
    outbox = world.outbox("pi-5", state)
    for number in numbers:
        world.put(outbox, identity(number))
    return outbox


def repository(outbox: Outbox) -> Path:
    """Where a delivery makes its commits."""
    return outbox.folder / "repository.git"
