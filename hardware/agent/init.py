"""Setting an agent up: what can be detected is not asked, and what is there is not touched without saying so.

It may be run again at any time: a configuration and a key that are there stay, units are brought up to date and the old
ones kept beside them, and the line the owner needs is printed once more.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from archbench.atomic import write_atomically
from archbench.hardware.agent.config import AgentConfig, Misconfigured, as_toml, load, parse, state_folder
from archbench.hardware.agent.keys import Key, ensure_key
from archbench.hardware.agent.signed_git import GitFailed, require_git
from archbench.hardware.agent.units import SYSTEM_UNITS, SYSTEM_USERS, SYSUSERS, TIMER, USER, sysusers, units, word
from archbench.hardware.detect import Host, default_device, detect, machine_name
from archbench.hardware.preflight import BELOW_LIMIT_K, soft_limit_c

SUITES = ("edge_llm",)
MODEL = "edge build smollm2_135m"  # what the default suite measures


@dataclass
class Made:
    """What ``init`` did, in sentences, and what is left to do."""

    config: AgentConfig
    key: Key
    did: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)


def init(state: Path, wishes: Mapping[str, Any], *, here: Path, install: bool = False) -> Made:
    """Make or complete the agent in a state folder. ``wishes`` are settings that are not to be detected.

    With ``install`` the units go where systemd looks for them, and the service's user is made. Raises Misconfigured for
    a wish that cannot be, ValueError for what is missing on this machine, OSError.
    """
    try:
        require_git()
    except GitFailed as failed:
        raise ValueError(str(failed)) from failed
    if install:
        _check_installable(state)
    did: list[str] = []
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = _configured(state, wishes, here, did)
    there = config.key.exists()
    key = ensure_key(config.key.parent, config.machine)
    did.append(f"{'kept' if there else 'made'} the key {key.path}")
    made = Made(config, key, did)
    folder = SYSTEM_UNITS if install else state / "systemd"
    try:
        texts = units(config, sys.executable)
    except ValueError as error:  # with --install this was asked before anything was written
        did.append(f"wrote no systemd units: {error}; agent run --once and --watch need none")
        texts = {}
    for name, text in texts.items():
        did.append(_put(folder / name, text))
    if install:
        did.append(_put(SYSTEM_USERS / SYSUSERS, sysusers(config)))
        _hand_over(state)
        did.append(f"gave {state} to the user {USER}")
        made.next.append(f"systemctl enable --now {TIMER}")
    elif texts:
        did.append(f"wrote units into {folder}, where systemd does not look: --install, as root, puts them in place")
    if not install:
        made.next.append(
            "archbench agent run --once" + ("" if state == state_folder() else f" --state {quote(str(state))}")
        )
    return made


def _configured(state: Path, wishes: Mapping[str, Any], here: Path, did: list[str]) -> AgentConfig:
    path = state / "agent.toml"
    if path.exists():
        config = load(state)
        for name, wish in wishes.items():
            if getattr(config, name) != wish:
                raise Misconfigured(f"{path} says {name} = {getattr(config, name)!r}: change it there")
        did.append(f"kept {path}")
        return config
    found = {**detected(here, wishes), **wishes}
    config = parse({name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}, state)
    _check_schedule(config.schedule)
    write_atomically(path, as_toml(config).encode())
    did.append(f"wrote {path}")
    return config


def detected(here: Path, wishes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that this machine and the clone at ``here`` decide. Raises Misconfigured."""
    host = detect()
    found: dict[str, Any] = {"machine": _machine(host), "suites": SUITES, "max_temperature_c": _warmest(host)}
    if "repository" not in wishes:
        found["repository"] = _repository(here)
        found["branch"] = _git(here, "rev-parse", "--abbrev-ref", "origin/HEAD").removeprefix("origin/") or "main"
    found["remote"] = _git(here, "config", "remote.results.url") or wishes.get("repository") or found["repository"]
    if any(suite.partition("/")[0] == "edge_llm" for suite in wishes.get("suites", SUITES)):
        found["prepare"] = (MODEL,)
    return found


def _machine(host: Host) -> str:
    return machine_name(host, default_device(host)).replace(" ", "-")


def _warmest(host: Host) -> float:
    return (soft_limit_c(host.board.model) if host.board else 80.0) - BELOW_LIMIT_K


def _repository(here: Path) -> str:
    """The address the clone at ``here`` came from, or the clone itself. Raises Misconfigured."""
    top = _git(here, "rev-parse", "--show-toplevel")
    if not top:
        raise Misconfigured(f"{here} is in no git repository: name the one to measure with --repository")
    origin = _git(here, "config", "remote.origin.url")
    is_folder = origin and ":" not in origin
    return str((Path(top) / origin).resolve()) if is_folder else origin or top


def _git(folder: Path, *arguments: str) -> str:
    """What git says, or nothing where it says no."""
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _check_schedule(schedule: str) -> None:
    """Raises Misconfigured where systemd is there and does not understand it."""
    if shutil.which("systemd-analyze"):
        done = subprocess.run(["systemd-analyze", "calendar", "--", schedule], capture_output=True, text=True)
        if done.returncode:
            raise Misconfigured(f"schedule {schedule!r}: {done.stderr.strip().splitlines()[-1]}")


def _check_installable(state: Path) -> None:
    """Raises ValueError where a service could not run what is installed here."""
    if os.geteuid() != 0 or not shutil.which("systemctl"):
        raise ValueError("--install needs root, and a machine that systemd runs")
    if not shutil.which("systemd-sysusers"):
        raise ValueError("--install needs systemd-sysusers, which makes the service's user")
    homes = (Path("/home"), Path("/root"))
    hidden = [path for path in (Path(sys.executable), Path(__file__), state) if any(map(path.is_relative_to, homes))]
    for path in (state, Path(sys.executable)):
        word(str(path))
    if hidden:
        raise ValueError(f"{hidden[0]} lies in a home, which the service does not see: install under /opt, for example")


def _hand_over(state: Path) -> None:
    """Make the service's user, tell systemd, and give the state folder to the user. Raises ValueError, OSError."""
    for command in (["systemd-sysusers", SYSUSERS], ["systemctl", "daemon-reload"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    user = pwd.getpwnam(USER)
    for folder, _, files in os.walk(state):
        for path in (Path(folder), *(Path(folder) / name for name in files)):
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def _put(path: Path, text: str) -> str:
    """Write a unit; another text that is there is kept beside it. What was done, in words."""
    if path.exists():
        old = path.read_text(encoding="utf-8")
        if old == text:
            return f"kept {path}"
        kept = path.with_name(f"{path.name}.before")
        write_atomically(kept, old.encode())
        write_atomically(path, text.encode())
        return f"replaced {path}; the old one is {kept}"
    write_atomically(path, text.encode())
    return f"wrote {path}"
