"""``agent.toml``: what is written is read again, and what cannot be meant is refused by name."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from archbench.hardware.agent.config import AgentConfig, Misconfigured, as_toml, load, parse, state_folder

LEAST: dict[str, Any] = {
    "machine": "raspberry-pi-5-8gb",
    "repository": "https://example.org/archbench.git",
    "remote": "ssh://git@example.org/results.git",
    "suites": ["edge_llm"],
}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    given = LEAST | {"threads": 2, "deadline_s": 60, "environment": {"ARCHBENCH_EDGE": '/a "quoted" \\ folder\n'}}
    config = parse(given, tmp_path)
    config.file.write_text(as_toml(config), encoding="utf-8")
    assert load(tmp_path) == config
    assert config.key == tmp_path / "key" / "id_ed25519"
    assert tomllib.loads(as_toml(config))["key"] == "key/id_ed25519"
    assert parse(LEAST | {"key": "/etc/keys/board"}, tmp_path).key == Path("/etc/keys/board")


def test_every_setting_is_explained_in_the_file(tmp_path: Path) -> None:
    lines = as_toml(parse(LEAST, tmp_path)).splitlines()
    settings = [i for i, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert len(settings) == len(AgentConfig.__dataclass_fields__) - 2  # state is where it lies; environment is a table
    assert all(lines[i - 1].startswith("# ") and len(lines[i - 1]) > 20 for i in settings)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"machin": "x"}, "unknown setting 'machin': did you mean 'machine'?"),
        (
            {"machine": "../other"},
            "machine is '../other'; it must be letters, digits and . _ + - only, without two dots",
        ),
        ({"machine": "m.lock"}, "in a row and no dot or .lock at its end"),
        ({"machine": "a b"}, "machine is 'a b'"),
        ({"machine": "pi.lock"}, "machine is 'pi.lock'"),
        ({"remote": "--upload-pack=touch"}, "remote is '--upload-pack=touch'; it must be an address or a folder"),
        ({"repository": ""}, "repository is ''"),
        ({"branch": "a..b"}, "branch is 'a..b'"),
        ({"branch": "-d"}, "branch is '-d'"),
        ({"suites": []}, "suites is []; it must be at least one TRACK"),
        ({"suites": ["--force"]}, "suites is ['--force']"),
        ({"suites": "edge_llm"}, "suites is 'edge_llm'; it must be a list of texts"),
        ({"depth": 0}, "depth is 0; it must be more than 0"),
        ({"depth": True}, "depth is True; it must be a whole number"),
        ({"deadline_s": "1h"}, "deadline_s is '1h'; it must be a number"),
        ({"since": "yesterday"}, "since is 'yesterday'; it must be a date"),
        ({"memory_max": "lots"}, "memory_max is 'lots'"),
        ({"python": "python3"}, "python is 'python3'; it must be the full path"),
        ({"environment": {"A": 1}}, "environment is {'A': 1}; it must be a table of texts"),
        ({"key": 3}, "key is 3; it must be a path"),
        ({"schedule": "daily\nExecStart=x"}, "schedule is 'daily\\nExecStart=x'"),
        ({"max_temperature_c": 400}, "max_temperature_c is 400; it must be between 0 and 120"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured) as refused:
        parse(LEAST | changes, tmp_path)
    assert says in str(refused.value)


def test_a_missing_setting_says_what_it_is_for(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="remote is missing: the git repository results are delivered to"):
        parse({k: v for k, v in LEAST.items() if k != "remote"}, tmp_path)


@pytest.mark.parametrize("content", [None, b"machine = ", b"\xff"])
def test_a_file_that_is_none_is_named(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "agent.toml").write_bytes(content)
    with pytest.raises(Misconfigured, match=r"agent\.toml"):
        load(tmp_path)


def test_the_state_folder_is_systemds_or_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_folder({"STATE_DIRECTORY": "/var/lib/x:/var/lib/y"}) == Path("/var/lib/x")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert state_folder({"XDG_STATE_HOME": "/home/u/state"}) == Path("/home/u/state/archbench-agent")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert state_folder({}) == Path("/var/lib/archbench-agent")
