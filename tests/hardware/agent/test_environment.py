"""The interpreter a commit is measured with: its own environment, installed when it has to be, or a given one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent_desk import Desk
from archbench.hardware.agent import environment as module
from archbench.hardware.agent.child import Ended
from archbench.hardware.agent.environment import CannotInstall, Environment
from working_copy import ROOT


class Pip:
    """Stands in for venv and pip: notes what it was asked, and makes what venv makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[str]] = []
        self.answer = Ended(0, "")
        monkeypatch.setattr(module, "supervise", self)

    def __call__(self, command: list[str], **how: object) -> Ended:
        self.asked.append(command)
        if command[1:3] == ["-m", "venv"]:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.unlink(missing_ok=True)
            python.symlink_to(sys.executable)
            return Ended(0, "")
        return self.answer


@pytest.fixture
def top(tmp_path: Path) -> Path:
    top = tmp_path / "checkout"
    top.mkdir()
    (top / "pyproject.toml").write_text("[project]\n")
    (top / "constraints.txt").write_text("numpy==2\n")
    return top


@pytest.fixture
def own(tmp_path: Path) -> Environment:
    config = Desk(tmp_path / "desk", python="", environment={"ARCHBENCH_EDGE": "/models"}).config
    return Environment(config, tmp_path / "install.log")


def test_requirements_are_installed_once_for_commits_that_require_the_same(
    own: Environment, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip(monkeypatch)
    found = own.ready(top)
    assert [command[1:3] for command in pip.asked] == [["-m", "venv"], ["-m", "pip"]]
    assert pip.asked[1][-4:] == ["-c", "constraints.txt", "-e", ".[edge]"]
    assert found.python == pip.asked[1][0]
    assert found.variables["ARCHBENCH_MACHINE"] == "pi5"
    assert found.variables["ARCHBENCH_EDGE"] == "/models"
    assert own.ready(top) == found
    assert len(pip.asked) == 2
    (top / "constraints.txt").write_text("numpy==3\n")
    own.ready(top)
    assert [command[1:3] for command in pip.asked[2:]] == [["-m", "pip"]]


def test_an_environment_whose_python_was_upgraded_away_is_made_again(
    own: Environment, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip(monkeypatch)
    python = Path(own.ready(top).python)
    python.unlink()
    python.symlink_to("/usr/bin/python2.0")
    own.ready(top)
    assert [command[1:3] for command in pip.asked[2:]] == [["-m", "venv"], ["-m", "pip"]]


def test_half_an_installation_does_not_count(own: Environment, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip(monkeypatch)
    own.ready(top)
    (top / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    pip.answer = Ended(1, "ERROR: No matching distribution found")
    with pytest.raises(CannotInstall, match="cannot be installed: ERROR: No matching distribution"):
        own.ready(top)
    pip.answer = Ended(None, "Building wheel")
    with pytest.raises(CannotInstall, match="took more than 7200 s: Building wheel"):
        own.ready(top)
    (top / "pyproject.toml").write_text("[project]\n")  # back to what was whole before
    pip.answer = Ended(0, "")
    asked = len(pip.asked)
    own.ready(top)
    assert len(pip.asked) == asked + 1


def test_a_project_without_pins_or_extras_is_installed_as_it_is(
    tmp_path: Path, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip(monkeypatch)
    (top / "constraints.txt").unlink()
    config = Desk(tmp_path / "plain", python="", extras=[]).config
    Environment(config, tmp_path / "install.log").ready(top)
    assert pip.asked[1][-2:] == ["-e", "."]
    assert "-c" not in pip.asked[1]


def test_an_interpreter_that_is_given_runs_the_checkouts_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/elsewhere")
    monkeypatch.setenv("ASV_COMMIT", "abc")
    config = Desk(tmp_path / "desk", python=sys.executable).config
    environment = Environment(config, tmp_path / "install.log")
    for _ in range(2):
        found = environment.ready(ROOT)
    assert found.python == sys.executable
    assert not {"GIT_DIR", "ASV_COMMIT"} & set(found.variables)
    packages = Path(found.variables["PYTHONPATH"]) / "archbench"
    assert {"cells.py", "harness", "hardware", "kernels", "models", "reports"} <= set(os.listdir(packages))
    assert not {"benchmarks", "tests"} & set(os.listdir(packages))
    asked = "import archbench.hardware.agent as agent; print(agent.__file__)"
    said = subprocess.run(
        [sys.executable, "-c", asked], env=found.variables, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == str(packages / "hardware" / "agent" / "__init__.py")


def test_a_checkout_of_something_else_is_no_commit_to_measure(tmp_path: Path, top: Path) -> None:
    config = Desk(tmp_path / "desk", python=sys.executable).config
    with pytest.raises(CannotInstall, match="no src/archbench"):
        Environment(config, tmp_path / "install.log").ready(top)
