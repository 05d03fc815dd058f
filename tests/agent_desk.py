"""An agent with all it needs on one desk: a repository to measure, a remote, and an interpreter that plays archbench.

The player writes the files a real ``archbench run --keep-in`` writes, in milliseconds, and misbehaves where a file says
so; a real run goes through the same folders in ``test_resume.py``.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archbench.hardware.agent.config import AgentConfig, parse
from archbench.hardware.agent.keys import ensure_key
from archbench.hardware.agent.memory import Look, State, read
from archbench.hardware.agent.worker import look

# Runs as `player -m archbench ...`: cells of the contenders in order, one behaviour for the call (see `Desk.plays`).
_PLAYER = r"""#!{python}
import json, os, pathlib, signal, shutil, subprocess, sys, time

words = sys.argv[3:]
desk = pathlib.Path(os.environ["DESK"])
plays = desk.joinpath("plays").read_text().split() if desk.joinpath("plays").exists() else []
with desk.joinpath("calls").open("a") as calls:
    print(json.dumps([words, os.environ.get("ARCHBENCH_MACHINE"), len(os.sched_getaffinity(0))]), file=calls)
if words[0] != "run":
    sys.exit("no such model" if "unprepared" in plays else 0)
if "idle" in plays:
    sys.exit(0)
if "broken" in plays:
    sys.exit("ImportError: a broken commit")
keep, into = (pathlib.Path(words[words.index(o) + 1]) for o in ("--keep-in", "--into"))
keep.mkdir(parents=True, exist_ok=True)
file, machine = keep / "cells.jsonl", os.environ["ARCHBENCH_MACHINE"]
commit = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
if not file.exists():
    header = {{"record": "run", "schema": 1, "run": f"20260102T030405Z-{{commit[:6]}}", "machine": machine,
              "commit": commit, "dirty": False, "started": "2026-01-02T03:04:05+00:00"}}
    file.write_text(json.dumps(header) + "\n")
for contender in ("added", "doubled", "shifted"):
    name = {{"track": "quick", "case": "n1000", "contender": contender, "baseline": "added"}}
    cell = {{"record": "cell", **name, "status": "unsupported", "reason": "played"}}
    if json.dumps(cell) in file.read_text():
        continue
    with file.open("a") as opened:
        print(json.dumps({{"record": "started", **name}}), file=opened)
        opened.flush()
        if f"hang:{{contender}}" in plays:
            child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            desk.joinpath("hanging").write_text(str(child.pid))
            if "deaf" in plays:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)
        if f"die:{{contender}}" in plays:
            sys.exit(f"{{contender}} took the run down")
        print(json.dumps(cell), file=opened)
place = into / machine / "cells"
place.mkdir(parents=True, exist_ok=True)
shutil.copyfile(file, place / f"20260102T030405Z-{{commit[:6]}}.jsonl")
shutil.rmtree(keep)
"""


def git(folder: Path, *arguments: str) -> str:
    """git, as somebody, in a folder."""
    command = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Desk:
    """One agent, one repository, one remote."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.repository, self.remote, self.state = folder / "code", folder / "remote.git", folder / "state"
        (self.repository / "src" / "archbench").mkdir(parents=True)
        git(self.repository, "init", "-q", "-b", "main")
        git(folder, "init", "-q", "--bare", str(self.remote))
        player = folder / "player"
        player.write_text(_PLAYER.format(python=sys.executable))
        player.chmod(0o755)
        given = {
            "machine": "pi5",
            "repository": str(self.repository),
            "remote": str(self.remote),
            "suites": ["quick"],
            "python": str(player),
            "min_free_bytes": 0,
            "environment": {"DESK": str(folder)},
        }
        self.given = given | settings
        ensure_key(self.config.key.parent, "pi5")

    @property
    def config(self) -> AgentConfig:
        return parse(self.given, self.state)

    def commit(self, path: str = "src/archbench/__init__.py", text: str = "", when: str | None = None) -> str:
        """Commit one file; gives the commit's hash."""
        (self.repository / path).parent.mkdir(parents=True, exist_ok=True)
        with (self.repository / path).open("a") as file:
            file.write(text or "# more\n")
        git(self.repository, "add", "-A")
        dated = {"GIT_COMMITTER_DATE": when, "GIT_AUTHOR_DATE": when} if when else {}
        command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-q", "-m", path]
        subprocess.run(command, cwd=self.repository, check=True, env=os.environ | dated)
        return git(self.repository, "rev-parse", "HEAD")

    def plays(self, *behaviours: str) -> None:
        """How calls behave from now on: broken, idle, unprepared, hang:CONTENDER, deaf, die:CONTENDER."""
        (self.folder / "plays").write_text(" ".join(behaviours))

    def look(self, again: Sequence[str] = (), *, by_hand: bool = False) -> Look:
        """One look, logged for the records pytest shows."""
        return look(self.config, logging.getLogger("desk"), again, by_hand=by_hand)

    def known(self) -> State:
        return read(self.state)

    def calls(self) -> list[list[Any]]:
        """What was called: words, machine, cores."""
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def delivered(self) -> dict[str, list[str]]:
        """Runs at the remote, and the contenders each has a cell of."""
        if not git(self.folder, "ls-remote", str(self.remote), "machine/pi5"):
            return {}
        found = {}
        for path in git(self.remote, "ls-tree", "-r", "--name-only", "machine/pi5").splitlines():
            if path.endswith(".jsonl"):
                records = map(json.loads, git(self.remote, "show", f"machine/pi5:{path}").splitlines())
                cells = [record["contender"] for record in records if record["record"] == "cell"]
                found[path.split("/")[1]] = cells
        return found


def run_of(commit: str) -> str:
    """The name of the run that measures a commit at a desk."""
    return f"20260102T030405Z-{commit[:6]}"
