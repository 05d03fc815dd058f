"""A small world for the agent: a repository to measure, a remote to deliver to, a board's state, and who collects.

The repository is this project with one track whose cells take a tenth of a second. The remote is a bare repository with
the hook of the publishing side. ``World.missing`` and ``World.twice`` say what an agent lost or delivered again: they
count rows by commit, case and contender in what the remote holds, and later in what was collected.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from archbench.cells import Cell, Run, decode
from archbench.hardware.agent import signed_hook
from archbench.hardware.agent.config import AgentConfig, as_toml
from archbench.hardware.agent.keys import ensure_key
from quick_track import CASES, CONTENDERS, add_quick_track
from working_copy import copy_tree

MACHINE = "toy-board"
TRACK = "quick"
Row = tuple[str, str, str]  # commit, case, contender
# No fault shows in twenty seconds of ceilings, nor in waiting until the machine is quiet.
_HURRIED = {
    "hardware/ceilings.py": ("_cpu(host, dtypes, threads)", "[]"),
    "src/archbench/harness/neighbours.py": ("CROWDED = 0.10", "CROWDED = 9.0"),
}
_LEFT_OUT = ("tests", "docs", ".ci", "results")


@dataclass
class World:
    """One board with its surroundings, below ``folder``."""

    folder: Path
    environment: Mapping[str, str]
    commits: list[str] = field(default_factory=list)  # that were made to be measured

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def remote(self) -> Path:
        return self.folder / "remote.git"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def allowed(self) -> Path:
        return self.folder / "allowed_signers"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def git(self, *arguments: str, at: Path | None = None, **variables: str) -> str:
        """What git prints, in the source's work tree unless told. Raises CalledProcessError."""
        person = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "gc.auto=0")
        command = ["git", *person, "-C", str(at or self.source), *arguments]
        environment = {**self.environment, **variables}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(self, *, requires: bool = False, date: str = "") -> str:
        """Make a commit that measures something else, or ``requires`` something else, than the one before."""
        path = self.source / ("constraints.txt" if requires else f"kernels/{TRACK}/{CONTENDERS[0]}.py")
        path.write_text(path.read_text() + f"# {len(self.commits)}\n")
        dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date} if date else {}
        self.git("commit", "-qam", f"change {len(self.commits)}", **dates)
        self.commits.append(self.git("rev-parse", "HEAD"))
        return self.commits[-1]

    def configure(self, **settings: object) -> AgentConfig:
        """Write the board's ``agent.toml``, with its key, and have the publishing side allow that key."""
        key = ensure_key(self.state / "key", MACHINE)
        given = {
            "machine": MACHINE,
            "repository": str(self.source),
            "remote": str(self.remote),
            "suites": (TRACK,),
            "depth": 50,
            "min_free_bytes": 0,
            "attempts": 1000,  # what is killed on purpose is no commit that fails
            "python": sys.executable,
            "key": key.path,
            **settings,
        }
        config = AgentConfig(state=self.state, **given)  # type: ignore[arg-type]
        config.file.write_text(as_toml(config), encoding="utf-8")
        self.allowed.write_text(key.allowed_signers_line + "\n", encoding="utf-8")
        return config

    def command(self, verb: str, *arguments: str, state: Path | None = None) -> list[str]:
        return [sys.executable, "-m", "archbench", "agent", verb, "--state", str(state or self.state), *arguments]

    def start(self, *before: str, state: Path | None = None, **variables: str) -> subprocess.Popen[str]:
        """Start one look of the agent, behind the words ``before``."""
        return subprocess.Popen(
            [*before, *self.command("run", "--once", state=state)],
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def look(self, *before: str, timeout_s: float = 300, **variables: str) -> tuple[int, str]:
        """One whole look of the agent: exit code and what it said."""
        process = self.start(*before, **variables)
        said, _ = process.communicate(timeout=timeout_s)
        return process.returncode, said

    def until_all_is_delivered(self, looks: int = 5) -> tuple[int, str]:
        """Look as a timer would, until everything is measured and delivered; the last exit code and what was said."""
        code, said = 1, ""
        for _ in range(looks):
            self.wait_for_the_lock()
            code, said = self.look()
            if code == 0 and not self.missing(self.at_remote()):
                break
            self.forget_pause()
        return code, said

    def forget_pause(self) -> None:
        """As if the pause after a failed delivery were over."""
        (self.state / "outbox" / "backoff.json").unlink(missing_ok=True)

    def runs(self) -> list[tuple[str, str]]:
        """Commit and run of each run file at the remote."""
        headers = [decode(text.splitlines()[0].encode()) for text in self._run_files()]
        return [(header.commit, header.run) for header in headers if isinstance(header, Run)]

    def wait_for_the_lock(self, longest_s: float = 90.0) -> None:
        """Wait until nothing that a killed agent started holds its lock any more."""
        ends = time.monotonic() + longest_s
        lock = self.state / "agent.lock"
        while lock.exists() and time.monotonic() < ends:
            if subprocess.run(["flock", "--nonblock", str(lock), "true"]).returncode == 0:
                return
            time.sleep(0.1)

    def at_remote(self) -> Counter[Row]:
        """The rows the remote holds."""
        return sum(map(rows_of, self._run_files()), Counter())

    def _run_files(self) -> list[str]:
        """The content of every run file at the remote."""
        branch = f"refs/heads/machine/{MACHINE}"
        if not self.git("for-each-ref", branch, at=self.remote):
            return []
        paths = self.git("ls-tree", "-r", "--name-only", branch, at=self.remote).splitlines()
        wanted = [path for path in paths if path.endswith(".jsonl")]
        return [self.git("cat-file", "blob", f"{branch}:{path}", at=self.remote) for path in wanted]

    def collected(self) -> Counter[Row]:
        """The rows the publishing side has taken."""
        found: Counter[Row] = Counter()
        for path in self.results.glob("*/cells/*.jsonl"):
            found += rows_of(path.read_text(encoding="utf-8"))
        return found

    def missing(self, rows: Mapping[Row, int]) -> list[Row]:
        """The rows of every commit that are not there."""
        wanted = ((commit, case, who) for commit in self.commits for case in CASES for who in CONTENDERS)
        return [row for row in wanted if row not in rows]

    def twice(self, rows: Mapping[Row, int]) -> list[Row]:
        return [row for row, count in rows.items() if count > 1]

    def collect(self, *arguments: str) -> tuple[int, str]:
        """``archbench agent collect`` on the publishing side: exit code and what it said."""
        words = [
            sys.executable,
            "-m",
            "archbench",
            "agent",
            "collect",
            str(self.remote),
            "--results",
            str(self.results),
        ]
        words += ["--allowed-signers", str(self.allowed), "--state", str(self.folder / "collector")]
        done = subprocess.run([*words, *arguments], env=self.environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def broken(self) -> list[str]:
        """What ``git fsck --strict`` finds in the repositories at both ends."""
        found = []
        for repository in (self.remote, self.state / "outbox" / "repository.git"):
            if repository.exists():
                command = ["git", f"--git-dir={repository}", "fsck", "--strict", "--no-progress", "--no-dangling"]
                done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
                lines = (done.stdout + done.stderr).splitlines()
                said = "; ".join(line for line in lines if not line.startswith("notice:"))  # HEAD names no branch
                found += [f"{repository.name}: {said[-300:]}"] if done.returncode or said else []
        return found

    def problems(self) -> list[str]:
        """All that must not be at the end of any fault."""
        rows = self.at_remote()
        found = [f"lost: {row}" for row in self.missing(rows)] + [f"twice: {row}" for row in self.twice(rows)]
        return found + self.broken()

    def finish(self) -> list[str]:
        """Look until all is delivered, and all that must not be afterwards."""
        code, said = self.until_all_is_delivered()
        return ([f"the last look ended with {code}: {said[-400:]}"] if code else []) + self.problems()

    def taken(self) -> list[str]:
        """What is wrong with what the publishing side collects, and collects again."""
        code, said = self.collect()
        found = [f"collect ended with {code}: {said[-300:]}"] if code else []
        rows, held = self.collected(), self.at_remote()
        found += [f"collected {len(rows)} rows of {len(held)}"] if rows != held else []
        code, said = self.collect()
        return found + ([] if code == 0 and "nothing new" in said else [f"a second collect said {said[-200:]}"])


def rows_of(text: str) -> Counter[Row]:
    """The rows of a run file."""
    records = [decode(line) for line in text.encode().splitlines()]
    (header,) = (record for record in records if isinstance(record, Run))
    return Counter((header.commit, r.case, r.contender) for r in records if isinstance(r, Cell))


def kill_all(process: subprocess.Popen[str]) -> None:
    """What a loss of power does to a process: it and all it started are gone at once."""
    found: list[psutil.Process] = []
    try:
        top = psutil.Process(process.pid)
        top.suspend()
        found = top.children(recursive=True)
        for child in found:
            child.suspend()
    except psutil.Error:
        pass
    for child in (*found, process):
        try:
            child.kill()
        except (psutil.Error, ProcessLookupError):
            continue
    process.wait()
    psutil.wait_procs(found, 10)


def kill_one(process: subprocess.Popen[str]) -> None:
    """``kill -9`` of the agent alone: what it started is left behind."""
    process.kill()
    process.wait()


def make_world(folder: Path, **settings: object) -> World:
    """A board with one commit to measure and nothing done yet."""
    copy = copy_tree(folder / "copy")
    source = folder / "source"
    shutil.move(copy.top, source)
    for name in _LEFT_OUT:
        shutil.rmtree(source / name, ignore_errors=True)
    shutil.rmtree(source / "reports" / "results", ignore_errors=True)
    for room in ("kernels", "models"):
        for track in (path for path in (source / room).iterdir() if path.is_dir()):
            shutil.rmtree(track)
    for suite in (source / "benchmarks").glob("[a-z]*.py"):
        suite.unlink()
    add_quick_track(source)
    for name, (old, new) in _HURRIED.items():
        text = (source / name).read_text()
        assert text.count(old) == 1, f"{name} does not hold {old} once"
        (source / name).write_text(text.replace(old, new))
    home = folder / "home"
    home.mkdir()
    taken_out = ("GIT_", "ASV_", "ARCHBENCH_", "PYTHON", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(taken_out)}
    kept |= {
        "HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(home / ".cache")),
    }
    world = World(folder, kept)
    shutil.rmtree(source / ".git")
    world.git("init", "-q", "-b", "main")
    world.git("add", "-A")
    world.git("commit", "-qm", "a project with one small track")
    world.commits.append(world.git("rev-parse", "HEAD"))
    subprocess.run(["git", "init", "-q", "--bare", str(world.remote)], check=True, env=kept)
    world.configure(**settings)
    signed_hook.install(world.remote, world.allowed)
    return world
