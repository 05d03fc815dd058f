"""``archbench agent``: exit codes, what is said, and the log that is kept."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agent_desk import Desk
from archbench.cli import agent as verbs
from archbench.cli.console import app
from archbench.hardware.agent import lock, worker
from archbench.hardware.agent import log as logs
from archbench.hardware.agent.config import as_toml
from archbench.hardware.agent.keys import ensure_key
from archbench.hardware.agent.log import logging_to

HEADER = {"record": "run", "schema": 1}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path)
    desk.config.file.write_text(as_toml(desk.config))
    return desk


def call(desk: Desk, verb: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["agent", verb, *arguments, "--state", str(desk.state)])


def test_a_look_ends_with_0_and_a_fault_with_1(desk: Desk) -> None:
    commit = desk.commit()
    desk.plays("broken")
    done = call(desk, "run", "--once")
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"WARNING {commit[:12]}: the run ended with 1: ImportError: a broken commit" in done.stderr
    assert call(desk, "status").exit_code == 1
    desk.plays()
    assert call(desk, "run").exit_code == 0
    assert call(desk, "status").exit_code == 0
    log = (desk.state / "log" / "agent.log").read_text().splitlines()
    assert log[-1].endswith("INFO looked: 1 measured")
    assert all(line[10] == "T" and line[19] == "Z" for line in log)
    assert call(desk, "run", "--again", commit).exit_code == 0
    assert len(desk.calls()) == 3


def test_a_mistake_in_the_configuration_ends_with_2(desk: Desk) -> None:
    with desk.config.file.open("a") as file:
        file.write('\n[enviroment]\na = "b"\n')
    for verb in ("run", "status"):
        done = call(desk, verb)
        assert done.exit_code == 2
        assert "unknown setting 'enviroment': did you mean 'environment'?" in done.stderr
    desk.config.file.unlink()
    assert "`archbench agent init` makes one" in call(desk, "run").stderr


def test_a_second_agent_ends_with_3(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PAUSE_S", 0.0)
    with (desk.state / "agent.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = call(desk, "run")
    assert done.exit_code == 3
    assert "another agent is at work" in done.stderr


def test_an_outcome_that_cannot_even_be_noted_ends_with_1(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker.Memory, "_save", full)
    desk.commit()
    done = call(desk, "run")
    assert done.exit_code == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_watching_looks_again_whatever_goes_wrong_and_ends_when_interrupted(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.commit()
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            desk.config.file.write_text("machine = ")
        elif len(pauses) == 2:
            desk.config.file.write_text(as_toml(desk.config))
            desk.commit()
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "sleep", pause)
    done = call(desk, "run", "--watch")
    assert done.exit_code == 130
    assert pauses == [900.0] * 3
    assert "no look: " in done.stderr
    assert len(desk.delivered()) == 2


def test_the_status_is_json_for_monitors(desk: Desk) -> None:
    desk.commit()
    call(desk, "run")
    found = json.loads(call(desk, "status", "--json").stdout)
    assert (found["machine"], found["attention"], found["last_run"]["cells"]) == ("pi5", [], 3)


def test_set_up_and_collected_from_the_command_line(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.commit()
    call(desk, "run")
    signers, results, mirror = desk.folder / "allowed_signers", desk.folder / "results", desk.folder / "collector"
    monkeypatch.chdir(desk.repository)
    desk.config.file.unlink()
    said = call(
        desk, "init", "--machine", "pi5", "--remote", str(desk.remote), "--suite", "quick", "--schedule", "daily"
    )
    assert said.exit_code == 0, said.stderr
    assert f"measures quick of {desk.repository}, branch main" in said.stdout
    assert f"delivers to machine/pi5 of {desk.remote}" in said.stdout
    line = next(line for line in said.stdout.splitlines() if line.startswith("pi5 "))
    signers.write_text(ensure_key(desk.folder / "other", "pi5").allowed_signers_line + "\n")
    collect = ["agent", "collect", str(desk.remote), "--allowed-signers", str(signers), "--results", str(results)]
    collect += ["--state", str(mirror)]
    refused = CliRunner().invoke(app, collect)
    assert refused.exit_code == 1
    assert refused.stdout.startswith("quarantined machine/pi5 ")
    signers.write_text(line + "\n")
    taken = CliRunner().invoke(app, [*collect, "--json"])
    assert taken.exit_code == 0, taken.stdout
    assert [run["machine"] for run in json.loads(taken.stdout)["accepted"]] == ["pi5"]
    assert len(list((results / "pi5" / "cells").iterdir())) == 1
    assert CliRunner().invoke(app, collect).stdout == "nothing new\n"
    gone = CliRunner().invoke(app, ["agent", "collect", str(desk.folder / "gone"), *collect[3:]])
    assert gone.exit_code == 2
    assert "gone" in gone.stderr


def test_a_mistake_in_setting_up_ends_with_2(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk.repository)
    done = call(desk, "init", "--machine", "../pi5")
    assert done.exit_code == 2
    assert "change it there" in done.stderr


def test_the_log_takes_turns_and_is_one_line_an_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 400)
    with logging_to(tmp_path) as log:
        for number in range(40):
            log.warning("event %d\nof two lines\u202e", number)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["agent.log", *(f"agent.log.{i}" for i in range(1, logs.FILES + 1))]
    assert (tmp_path / "agent.log").read_text().splitlines()[-1].endswith("event 39 | of two lines\\u202e")
    assert capsys.readouterr().err.count("event") == 40


def test_a_log_that_cannot_be_written_costs_no_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").touch()
    with logging_to(tmp_path / "log") as log:
        log.info("still said")

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    with logging_to(tmp_path / "other") as log:
        monkeypatch.setattr(logs._Rotating, "shouldRollover", full)
        log.info("said too")
    said = capsys.readouterr().err
    assert "no log file: " in said
    assert "still said" in said
    assert "said too" in said
    assert "Traceback" not in said
