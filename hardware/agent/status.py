"""How the agent fares, on one screen and for a monitor: what it knows, what waits, what is in the way.

Nothing here changes anything, and nothing needs the agent's lock, so it may be asked while the agent works.
"""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime

import msgspec

from archbench.formatting import size
from archbench.hardware.agent.config import AgentConfig
from archbench.hardware.agent.keys import KeyFailed, read_key
from archbench.hardware.agent.lock import is_running
from archbench.hardware.agent.memory import Look, Met, State, read
from archbench.hardware.agent.outbox import Outbox
from archbench.hardware.agent.run_folder import RunFolder
from archbench.hardware.agent.units import TIMER
from archbench.hardware.preflight import Obstacle, preflight


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What ``agent status`` says; its JSON form is this, schema 1. Times are UTC, ISO 8601."""

    schema: int = 1
    machine: str
    state: str
    free_bytes: int
    running: bool
    measuring: str  # the commit it is at, or was at when it was cut off
    finished_cells: int  # of that commit, so far
    last_look: Look | None
    last_whole_look: str
    last_run: Met | None
    given_up: list[Met]  # commits that were skipped since a commit was measured last
    waiting: list[str]  # runs the remote is not known to have
    next_delivery_s: float
    next_look: str  # as systemd says it; empty where no timer is set
    obstacles: list[Obstacle]
    attention: list[str]

    @property
    def exit_code(self) -> int:
        """0: all is well. 1: somebody should look."""
        return 1 if self.attention else 0

    def lines(self) -> list[str]:
        """For people: a line for each thing."""
        look, run = self.last_look, self.last_run
        doing = f"measuring {self.measuring[:12]}" if self.running and self.measuring else "at work"
        cut_off = f"idle; {self.measuring[:12]} is not finished" if self.measuring else "idle"
        cells = f", {self.finished_cells} cells are finished" if self.measuring else ""
        found = [
            ("machine", self.machine),
            ("state", f"{self.state}, {size(self.free_bytes)} free"),
            ("now", (doing if self.running else cut_off) + cells),
            ("last look", f"{look.when}, {look.measured} measured" if look else "never"),
            ("last run", f"{run.run} of commit {run.commit[:12]}, {run.cells} cells, {run.when}" if run else "none"),
            ("waiting", f"{len(self.waiting)} run(s) to be delivered" if self.waiting else "nothing"),
            ("next look", self.next_look or "no timer of systemd is set"),
        ]
        found += [("obstacle", str(obstacle)) for obstacle in self.obstacles]
        found += [("attention", sentence) for sentence in self.attention] or [("attention", "none")]
        return [f"{name:<10} {text}" for name, text in found]


def status(config: AgentConfig) -> Status:
    """Ask the state folder, the machine and systemd. Raises ValueError for a state that cannot be read, OSError."""
    known, outbox, running = read(config.state), Outbox(config), is_running(config.state)
    met = sorted(known.commits.values(), key=lambda m: m.number)
    done = next((m for m in reversed(met) if m.outcome == "done"), None)
    since = [m for m in met if done is None or m.number > done.number]
    begun = next((m for m in reversed(since) if m.outcome in ("begun", "failed")), None)
    given_up = [m for m in since if m.outcome == "skipped"]
    # What runs now makes heat and load of its own.
    obstacles = (
        []
        if running
        else preflight(
            folders=[config.state],
            min_free_bytes=config.min_free_bytes,
            max_temperature_c=config.max_temperature_c,
        )
    )
    return Status(
        machine=config.machine,
        state=str(config.state),
        free_bytes=shutil.disk_usage(config.state).free,
        running=running,
        measuring=begun.commit if begun else "",
        finished_cells=RunFolder(config.state / "work" / begun.commit, config.machine).cells() if begun else 0,
        last_look=known.last,
        last_whole_look=known.last_whole,
        last_run=done,
        given_up=given_up,
        waiting=list(outbox.waiting()),
        next_delivery_s=outbox.backoff().left_s(datetime.now(UTC).timestamp()),
        next_look=_next_look(),
        obstacles=obstacles,
        attention=_attention(config, known, given_up, obstacles, running=running),
    )


def _attention(
    config: AgentConfig, known: State, given_up: list[Met], obstacles: list[Obstacle], *, running: bool
) -> list[str]:
    found = [f"{obstacle.kind}: {obstacle.reason}" for obstacle in obstacles]
    try:
        read_key(config.key, config.machine)
    except KeyFailed as failed:
        found.append(str(failed))
    found += [f"commit {m.commit[:12]} was given up: {m.reason}" for m in given_up]
    if known.last is None and not running:
        found.append("it has never looked: archbench agent run --once")
    if known.last is not None:
        found += known.last.reasons
        silent = datetime.now(UTC) - datetime.fromisoformat(known.last_whole or known.last.when)
        if silent.total_seconds() > config.silence_s:
            found.append(f"no look was whole since {known.last_whole or 'it was set up'}")
    return found


def _next_look() -> str:
    if not shutil.which("systemctl"):
        return ""
    asked = ["systemctl", "show", TIMER, "--property=NextElapseUSecRealtime", "--value"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
