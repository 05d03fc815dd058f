"""What the agent is told: ``agent.toml`` in its state folder, read with errors that name the line to mend.

Every setting has a default or is detected by ``archbench agent init``; the file it writes carries each setting's
explanation as a comment, so the field's text below is the only place that says what a setting means.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from archbench.hardware.agent.signed_branch import is_machine
from archbench.names import unknown

FILE = "agent.toml"
SYSTEM_STATE = Path("/var/lib/archbench-agent")
GIB = 1 << 30
_BRANCH = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+/-]*[A-Za-z0-9_+-])?")


class Misconfigured(ValueError):
    """``agent.toml`` is missing or holds something that cannot be meant; the message says what to write."""


def _setting(says: str, default: Any = MISSING) -> Any:
    """A field of the configuration, with its explanation."""
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"says": says})
    return field(default=default, metadata={"says": says}) if default is not MISSING else field(metadata={"says": says})


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """The settings of one machine's agent. ``state`` is the folder the file lies in and is not written into it."""

    state: Path = field(metadata={"says": ""})
    machine: str = _setting("the name results go under, and of the branch machine/<name> they are delivered to")
    repository: str = _setting("the git repository whose commits are measured: an address or a folder")
    remote: str = _setting("the git repository results are delivered to: an address or a folder")
    branch: str = _setting("the branch whose commits are measured", "main")
    suites: tuple[str, ...] = _setting("what is measured, as `archbench run` takes it: TRACK or TRACK/CONTENDER", ())
    depth: int = _setting("how many of the branch's newest commits are measured, newest first", 1)
    since: str = _setting("no commit before this date is measured (2026-01-31); empty: no limit", "")
    schedule: str = _setting("when to look for new commits: systemd's OnCalendar", "*-*-* 00/2:00:00")
    interval_s: float = _setting("seconds between two looks of `agent run --watch`", 900.0)
    threads: int = _setting("how many cores a run may use; 0: all of them", 0)
    min_free_bytes: int = _setting("bytes that must be free on the state folder's file system", 2 * GIB)
    max_temperature_c: float = _setting("degrees Celsius above which no run is started", 70.0)
    memory_max: str = _setting("systemd's MemoryMax for the agent and all it starts", "90%")
    deadline_s: float = _setting("seconds a run may take in one sitting; the next one goes on where it was", 21600.0)
    install_deadline_s: float = _setting("seconds that installing a commit's requirements may take", 7200.0)
    attempts: int = _setting("how often a commit may fail without one more finished cell before it is skipped", 3)
    silence_s: float = _setting(
        "`agent status` asks for attention after so many seconds without a whole look", 259200.0
    )
    extras: tuple[str, ...] = _setting("extras of the project that are installed for a run", ("edge",))
    prepare: tuple[str, ...] = _setting("archbench commands that come before a run, such as `edge build MODEL`", ())
    python: str = _setting("an interpreter that has what a run needs; empty: the agent makes and keeps its own", "")
    key: Path = field(metadata={"says": "the private SSH key that signs deliveries; relative to this folder"})
    environment: Mapping[str, str] = _setting("variables a run gets besides", {})

    @property
    def file(self) -> Path:
        return self.state / FILE


def state_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where the agent of this user lives: systemd's folder for it, the system's, or the user's own."""
    given = os.environ if environment is None else environment
    if given.get("STATE_DIRECTORY"):
        return Path(given["STATE_DIRECTORY"].partition(":")[0])
    if (SYSTEM_STATE / FILE).is_file() or os.geteuid() == 0:
        return SYSTEM_STATE
    return Path(given.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "archbench-agent"


def load(state: Path) -> AgentConfig:
    """The configuration in a state folder. Raises Misconfigured."""
    path = state / FILE
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Misconfigured(f"there is no {path}: `archbench agent init` makes one") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Misconfigured(f"{path} cannot be read: {error}") from error
    try:
        return parse(found, state)
    except Misconfigured as error:
        raise Misconfigured(f"{path}: {error}") from None


def parse(found: Mapping[str, Any], state: Path) -> AgentConfig:
    """Settings by name as a configuration. Raises Misconfigured with the setting's name."""
    known = {f.name: f for f in fields(AgentConfig) if f.name != "state"}
    types = get_type_hints(AgentConfig)
    for name in found:
        if name not in known:
            raise Misconfigured(unknown("setting", name, known))
    for name, setting in known.items():
        if name not in found and name != "key" and setting.default is MISSING and setting.default_factory is MISSING:
            raise Misconfigured(f"{name} is missing: {setting.metadata['says']}")
    given = {name: _typed(name, types[name], value) for name, value in found.items()}
    given["key"] = state / given.get("key", Path("key") / "id_ed25519")
    config = AgentConfig(state=state, **given)
    for name, (holds, must) in _RULES.items():
        if not holds(getattr(config, name)):
            raise Misconfigured(f"{name} is {found.get(name)!r}; it must be {must}")
    return config


def _typed(name: str, wanted: Any, value: Any) -> Any:
    """A TOML value as the field's type. Raises Misconfigured."""
    if wanted is Path and isinstance(value, str) and value:
        return Path(value).expanduser()
    if wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if wanted in (int, str) and type(value) is wanted:
        return value
    if wanted == tuple[str, ...] and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if wanted == Mapping[str, str] and isinstance(value, dict) and all(isinstance(v, str) for v in value.values()):
        return value
    raise Misconfigured(f"{name} is {value!r}; it must be {_KINDS[wanted]}")


_KINDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    tuple[str, ...]: "a list of texts",
    Mapping[str, str]: "a table of texts",
}


def _is_address(text: str) -> bool:
    return bool(text) and not text.startswith("-") and text.isprintable()


def _is_branch(name: str) -> bool:
    return _BRANCH.fullmatch(name) is not None and ".." not in name and "//" not in name


_POSITIVE = (lambda value: value > 0, "more than 0")
_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "machine": (
        is_machine,
        "letters, digits and . _ + - only, without two dots in a row and no dot or .lock at its end",
    ),
    "repository": (_is_address, "an address or a folder"),
    "remote": (_is_address, "an address or a folder"),
    "branch": (_is_branch, "a branch's name"),
    "suites": (lambda names: names and not any(n.startswith("-") for n in names), "at least one TRACK"),
    "depth": _POSITIVE,
    "since": (
        lambda text: re.fullmatch(r"|\d{4}-\d\d-\d\d(T[\d:]+Z?)?", text) is not None,
        "a date such as 2026-01-31",
    ),
    "schedule": (lambda text: text.isprintable() and text.strip(), "a calendar event such as daily"),
    "interval_s": _POSITIVE,
    "threads": (lambda count: count >= 0, "0 or more"),
    "min_free_bytes": (lambda count: count >= 0, "0 or more"),
    "max_temperature_c": (lambda celsius: 0 < celsius <= 120, "between 0 and 120"),
    "memory_max": (lambda text: re.fullmatch(r"\d+(%|[KMGT])?|infinity", text) is not None, "such as 90% or 3G"),
    "deadline_s": _POSITIVE,
    "install_deadline_s": _POSITIVE,
    "attempts": _POSITIVE,
    "silence_s": _POSITIVE,
    "extras": (lambda names: all(re.fullmatch(r"[a-z0-9_-]+", name) for name in names), "names of extras"),
    "python": (lambda path: not path or Path(path).is_absolute(), "the full path of an interpreter, or empty"),
}


def as_toml(config: AgentConfig) -> str:
    """The file ``load`` reads, with every setting's explanation above it."""
    lines = ["# The archbench agent of this machine. `archbench agent status` says how it fares.", ""]
    for setting in fields(AgentConfig):
        if setting.name not in ("state", "environment"):
            lines += [f"# {setting.metadata['says']}", f"{setting.name} = {_toml(_written(config, setting))}", ""]
    (table,) = (setting for setting in fields(AgentConfig) if setting.name == "environment")
    lines += [f"# {table.metadata['says']}", "[environment]"]  # a table ends only with the file
    lines += [f"{_toml(name)} = {_toml(value)}" for name, value in config.environment.items()]
    return "\n".join(lines) + "\n"


def _written(config: AgentConfig, setting: Field[Any]) -> Any:
    value = getattr(config, setting.name)
    if isinstance(value, Path) and value.is_relative_to(config.state):
        return value.relative_to(config.state)
    return value


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False)  # a JSON string is a basic string of TOML
