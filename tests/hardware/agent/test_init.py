"""Setting an agent up: what is detected, what is written, and that nothing is overwritten without saying so."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent_desk import Desk, git
from archbench.hardware.agent import init as module
from archbench.hardware.agent import units as texts
from archbench.hardware.agent.config import Misconfigured, load
from archbench.hardware.agent.init import init
from archbench.hardware.agent.units import SERVICE, SYSUSERS, TIMER, units


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone whose origin is a folder, on a branch of another name."""
    monkeypatch.setenv("ARCHBENCH_MACHINE", "raspberry-pi-5-8gb")
    origin, here = tmp_path / "origin.git", tmp_path / "clone"
    git(tmp_path, "init", "-q", "--bare", "-b", "trunk", str(origin))
    git(tmp_path, "init", "-q", "-b", "trunk", str(here))
    git(here, "commit", "-q", "--allow-empty", "-m", "first")
    git(here, "remote", "add", "origin", "../origin.git")
    git(here, "push", "-q", "origin", "trunk")
    git(here, "remote", "set-head", "origin", "trunk")
    return here


def test_it_asks_nothing_it_can_detect(clone: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    made = init(state, {}, here=clone)
    config = load(state)
    assert config == made.config
    assert (config.machine, config.branch) == ("raspberry-pi-5-8gb", "trunk")
    assert (config.repository, config.remote) == (str(tmp_path / "origin.git"), str(tmp_path / "origin.git"))
    assert (config.suites, config.prepare) == (("edge_llm",), ("edge build smollm2_135m",))
    assert made.key.allowed_signers_line.startswith('raspberry-pi-5-8gb namespaces="git" ssh-ed25519 ')
    assert made.key.path == config.key
    assert state.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in (state / "systemd").iterdir()) == [SERVICE, TIMER]
    assert made.next == [f"archbench agent run --once --state {state}"]


def test_a_results_remote_of_the_clone_is_where_results_go(clone: Path, tmp_path: Path) -> None:
    git(clone, "remote", "add", "results", "ssh://git@example.org/results.git")
    git(clone, "config", "remote.origin.url", "https://example.org/archbench.git")
    config = init(tmp_path / "state", {"suites": ("norm",)}, here=clone).config
    assert (config.repository, config.remote) == (
        "https://example.org/archbench.git",
        "ssh://git@example.org/results.git",
    )
    assert (config.suites, config.prepare) == (("norm",), ())


def test_a_clone_without_an_origin_is_measured_itself(clone: Path, tmp_path: Path) -> None:
    git(clone, "remote", "remove", "origin")
    config = init(tmp_path / "state", {}, here=clone).config
    assert (config.repository, config.remote, config.branch) == (str(clone), str(clone), "main")


def test_outside_of_a_clone_the_repository_has_to_be_named(clone: Path, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="is in no git repository: name the one to measure with --repository"):
        init(tmp_path / "state", {}, here=tmp_path)
    wishes = {"repository": "https://example.org/a.git", "branch": "next", "machine": "bench-2"}
    config = init(tmp_path / "state", wishes, here=tmp_path).config
    assert (config.repository, config.remote) == ("https://example.org/a.git", "https://example.org/a.git")
    assert (config.machine, config.branch) == ("bench-2", "next")


def test_a_second_time_keeps_what_is_there_and_says_so(clone: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = init(state, {}, here=clone)
    (state / "agent.toml").write_text((state / "agent.toml").read_text().replace("depth = 1", "depth = 7"))
    (state / "systemd" / SERVICE).write_text("# mine\n")
    (state / "systemd" / TIMER).unlink()
    second = init(state, {}, here=clone)
    assert (second.key, second.config.depth) == (first.key, 7)
    assert f"kept {state / 'agent.toml'}" in second.did
    assert f"kept the key {second.key.path}" in second.did
    before = state / "systemd" / f"{SERVICE}.before"
    assert f"replaced {state / 'systemd' / SERVICE}; the old one is {before}" in second.did
    assert before.read_text() == "# mine\n"
    assert f"wrote {state / 'systemd' / TIMER}" in second.did
    assert f"kept {state / 'systemd' / TIMER}" in init(state, {"machine": "raspberry-pi-5-8gb"}, here=clone).did


def test_a_wish_against_what_is_written_is_refused(clone: Path, tmp_path: Path) -> None:
    init(tmp_path / "state", {}, here=clone)
    with pytest.raises(Misconfigured, match=r"says machine = 'raspberry-pi-5-8gb': change it there"):
        init(tmp_path / "state", {"machine": "other"}, here=clone)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_a_schedule_systemd_does_not_understand_is_refused(clone: Path, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="schedule 'whenever'"):
        init(tmp_path / "state", {"schedule": "whenever"}, here=clone)
    assert not (tmp_path / "state" / "agent.toml").exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_units_and_calls_the_service_safe(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "USER", "root")  # verify looks the user up; this one is everywhere
    made = init(tmp_path / "state", {}, here=clone)
    paths = [str(made.config.state / "systemd" / name) for name in (SERVICE, TIMER)]
    verified = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = ["systemd-analyze", "security", "--offline=true", "--threshold=30", paths[0]]
    safe = subprocess.run(judged, capture_output=True, text=True)
    if "unrecognized option" in safe.stderr:
        pytest.skip("this systemd-analyze cannot judge a file")
    assert safe.returncode == 0, safe.stdout


def test_the_units_say_what_the_configuration_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path, schedule="Mon 03:00", memory_max="3G")
    monkeypatch.setattr(texts, "_is_group", lambda name: False)
    found = units(desk.config, "/opt/100%/bin/python")
    assert "OnCalendar=Mon 03:00\n" in found[TIMER]
    assert "MemoryMax=3G\n" in found[SERVICE]
    assert "SupplementaryGroups=\n" in found[SERVICE]
    run = f"ExecStart=/opt/100%%/bin/python -m archbench agent run --once --state {desk.state}\n"
    assert run in found[SERVICE]
    with pytest.raises(ValueError, match="cannot stand in a systemd unit"):
        units(desk.config, "/opt/my python")


def test_a_group_is_one_the_system_knows() -> None:
    assert texts._is_group("no such group") is False
    assert texts._is_group("root" if sys.platform == "linux" else "wheel") is True


def test_installing_needs_root_and_code_the_service_can_see(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ValueError, match="--install needs root"):
        init(tmp_path / "state", {}, here=clone, install=True)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(module.shutil, "which", lambda name: None if name == "systemd-sysusers" else f"/bin/{name}")
    with pytest.raises(ValueError, match="needs systemd-sysusers"):
        init(tmp_path / "state", {}, here=clone, install=True)
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/bin/{name}")
    with pytest.raises(ValueError, match="/home/pi/state lies in a home, which the service does not see"):
        init(Path("/home/pi/state"), {}, here=clone, install=True)
    assert not (tmp_path / "state").exists()


def test_installing_makes_the_user_and_hands_the_state_over(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, system, users = tmp_path / "state", tmp_path / "system", tmp_path / "users"
    done, given = [], []
    real = subprocess.run

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if command[0] in ("systemd-sysusers", "systemctl"):
            done.append(command)
            return subprocess.CompletedProcess(command, 0, "", "")
        return real(command, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(module, "_check_installable", lambda state: None)
    monkeypatch.setattr(module, "SYSTEM_UNITS", system)
    monkeypatch.setattr(module, "SYSTEM_USERS", users)
    monkeypatch.setattr(module, "USER", "root")
    monkeypatch.setattr(module.subprocess, "run", run)
    monkeypatch.setattr(module.os, "chown", lambda path, *who, **how: given.append(Path(path)))
    made = init(state, {}, here=clone, install=True)
    assert done == [["systemd-sysusers", SYSUSERS], ["systemctl", "daemon-reload"]]
    assert sorted(path.name for path in (*system.iterdir(), *users.iterdir())) == [SYSUSERS, SERVICE, TIMER]
    assert f' "archbench agent" {state} ' in (users / SYSUSERS).read_text()
    assert {state, state / "agent.toml", made.key.path} <= set(given)
    assert made.next == [f"systemctl enable --now {TIMER}"]

    def refuse(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if command[0] == "systemctl":
            return subprocess.CompletedProcess(command, 1, "", "no bus\n")
        return run(command, **options)

    monkeypatch.setattr(module.subprocess, "run", refuse)
    with pytest.raises(ValueError, match="systemctl daemon-reload failed: no bus"):
        init(state, {}, here=clone, install=True)


def test_a_state_folder_no_unit_can_name_gets_an_agent_without_units(clone: Path, tmp_path: Path) -> None:
    state = tmp_path / "my agent"
    made = init(state, {}, here=clone)
    assert not (state / "systemd").exists()
    assert any(line.startswith("wrote no systemd units: ") and "my agent" in line for line in made.did)
    assert made.next == [f"archbench agent run --once --state '{state}'"]
    assert made.key.allowed_signers_line.startswith("raspberry-pi-5-8gb ")
