"""``agent status``: one screen for people, JSON and exit codes for monitors."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from agent_desk import Desk
from archbench.hardware.agent import memory as remembering
from archbench.hardware.agent import status as module
from archbench.hardware.agent.lock import is_running
from archbench.hardware.agent.memory import Memory, own_code
from archbench.hardware.agent.status import Status, status
from archbench.hardware.preflight import Obstacle


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def shown(found: Status) -> dict[str, str]:
    return {line[:10].strip(): line[11:] for line in found.lines()}


def test_an_agent_that_never_looked_asks_for_attention(desk: Desk) -> None:
    found = status(desk.config)
    assert found.exit_code == 1
    assert found.attention == ["it has never looked: archbench agent run --once"]
    assert shown(found)["last look"] == "never"


def test_all_is_well_after_a_whole_look(desk: Desk) -> None:
    commit = desk.commit()
    desk.look()
    found = status(desk.config)
    assert (found.exit_code, found.attention, found.running, found.measuring) == (0, [], False, "")
    lines = shown(found)
    assert (lines["machine"], lines["now"], lines["waiting"], lines["attention"]) == ("pi5", "idle", "nothing", "none")
    assert commit[:12] in lines["last run"]
    assert len(found.lines()) < 20
    assert all("\n" not in line for line in found.lines())


def test_its_json_is_read_again(desk: Desk) -> None:
    desk.commit()
    desk.look()
    found = status(desk.config)
    encoded = msgspec.json.encode(found)
    assert json.loads(encoded)["schema"] == 1
    assert msgspec.json.decode(encoded, type=Status) == found


def test_what_went_wrong_last_asks_for_attention_until_it_is_well(desk: Desk) -> None:
    commit = desk.commit()
    desk.plays("die:doubled")
    desk.look()
    found = status(desk.config)
    assert found.attention == [f"{commit[:12]}: the run ended with 1: doubled took the run down"]
    assert (found.measuring, found.finished_cells) == (commit, 1)
    assert shown(found)["now"] == f"idle; {commit[:12]} is not finished, 1 cells are finished"
    desk.plays()
    desk.look()
    assert status(desk.config).exit_code == 0


def test_a_commit_that_was_given_up_asks_until_another_one_is_measured(desk: Desk) -> None:
    commit = desk.commit()
    desk.given["attempts"] = 1
    desk.plays("broken")
    desk.look()
    desk.look()
    assert status(desk.config).attention == [
        f"commit {commit[:12]} was given up: the run ended with 1: ImportError: a broken commit"
    ]
    desk.plays()
    desk.commit()
    desk.look()
    assert status(desk.config).exit_code == 0


def test_runs_that_wait_are_counted_with_their_reason(desk: Desk) -> None:
    desk.commit()
    desk.remote.rename(desk.folder / "away.git")
    desk.look()
    found = status(desk.config)
    assert (found.exit_code, len(found.waiting)) == (1, 1)
    assert 0 < found.next_delivery_s <= 10
    assert found.attention[0].startswith("1 run(s) wait to be delivered: ")


def test_while_it_works_the_status_says_so_and_waits_for_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = desk.commit()
    memory = Memory(desk.state, "pi5", ("quick",))
    memory.note(commit, "begun", deaths=1)

    def heat(**given: object) -> list[Obstacle]:
        return [Obstacle("heat", "81 °C", "let it cool")]

    monkeypatch.setattr(module, "preflight", heat)
    with (desk.state / "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = status(desk.config)
        assert (found.running, found.measuring, found.obstacles, found.attention) == (True, commit, [], [])
        assert shown(found)["now"] == f"measuring {commit[:12]}, 0 cells are finished"
    found = status(desk.config)
    assert "heat: 81 °C" in found.attention
    assert shown(found)["obstacle"] == "heat: 81 °C. To mend it: let it cool"
    assert is_running(desk.state) is False


def test_an_agent_that_went_silent_asks_for_attention(desk: Desk) -> None:
    desk.commit()
    desk.look()
    path = desk.state / "state.json"
    state = json.loads(path.read_text())
    state["last_whole"] = "2026-01-01T00:00:00+00:00"
    path.write_text(json.dumps(state))
    assert status(desk.config).attention == ["no look was whole since 2026-01-01T00:00:00+00:00"]
    state["last_whole"] = "2999-01-01T00:00:00+00:00"  # by a clock that was wrong
    path.write_text(json.dumps(state))
    assert status(desk.config).exit_code == 0


def test_a_key_that_is_gone_asks_for_attention(desk: Desk) -> None:
    desk.commit()
    desk.look()
    shutil.rmtree(desk.config.key.parent)
    assert status(desk.config).attention == [f"there is no key {desk.config.key}: 'archbench agent init' makes one"]


def test_the_next_look_is_systemds(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    systemctl = desk.folder / "bin" / "systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text("#!/bin/sh\necho Thu 2026-11-26 02:00:00 UTC for $2\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{systemctl.parent}{os.pathsep}{os.environ['PATH']}")
    assert status(desk.config).next_look == "Thu 2026-11-26 02:00:00 UTC for archbench-agent.timer"
    systemctl.write_text("#!/bin/sh\nexit 1\n")
    assert shown(status(desk.config))["next look"] == "no timer of systemd is set"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert status(desk.config).next_look == ""


def test_a_state_that_cannot_be_read_is_a_mistake(desk: Desk) -> None:
    desk.state.mkdir(exist_ok=True)
    (desk.state / "state.json").write_text("[]")
    with pytest.raises(ValueError, match="is not the agent's state"):
        status(desk.config)


def test_the_memory_holds_the_youngest_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembering, "REMEMBERED", 2)
    memory = Memory(tmp_path, "pi5", ("quick",))
    for name in ("first", "second", "third"):
        memory.note(name, "done")
    memory.note("second", "skipped", reason="broken")
    known = Memory(tmp_path, "pi5", ("quick",)).state.commits
    assert [(met.commit, met.number) for met in known.values()] == [("third", 3), ("second", 4)]
    assert known["second"].agent == own_code()
