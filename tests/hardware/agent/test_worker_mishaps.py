"""What stands in an agent's way: no network, a broken clone, lost power, a full card; nothing is lost."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent_desk import Desk, git, run_of
from archbench.hardware.agent import child, lock, worker
from archbench.hardware.agent.config import Misconfigured
from archbench.hardware.agent.lock import AlreadyRunning
from archbench.hardware.agent.signed_git import GitFailed

ALL = ["added", "doubled", "shifted"]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


class PowerLost(BaseException):
    """Nobody handles it, as nobody handles the loss of power."""


def _lose_power(*given: object) -> None:
    raise PowerLost


def test_without_a_network_what_is_known_is_measured_and_waits(desk: Desk) -> None:
    commit = desk.commit()
    desk.look()
    desk.given["depth"] = 2
    newer = desk.commit()
    git(desk.state / "repository", "fetch", "-q", str(desk.repository), "+main:refs/remotes/origin/agent")
    gone = desk.folder / "gone"
    desk.repository.rename(gone)
    desk.remote.rename(desk.folder / "away.git")
    seen = desk.look()
    assert seen.measured == 1
    assert f"{desk.repository} cannot be fetched: " in seen.reasons[0]
    assert seen.reasons[1].startswith("1 run(s) wait to be delivered: ")
    (desk.folder / "away.git").rename(desk.remote)
    gone.rename(desk.repository)
    (waits,) = desk.look().reasons
    assert waits.startswith("1 run(s) wait to be delivered: "), "a timer keeps to the pause"
    assert desk.look(by_hand=True).whole
    assert desk.delivered() == {run_of(commit): ALL, run_of(newer): ALL}


def test_a_repository_that_is_not_there_at_all_is_a_reason(desk: Desk) -> None:
    shutil.rmtree(desk.repository)
    seen = desk.look()
    assert [reason.partition(":")[0] for reason in seen.reasons] == [
        f"{desk.repository} cannot be fetched",
        "nothing was ever fetched",
    ]


@pytest.mark.parametrize("harm", ["emptied objects", "an emptied file", "half a clone", "left locks", "no work tree"])
def test_a_clone_that_lost_power_is_mended_or_made_again(harm: str, desk: Desk) -> None:
    desk.commit()
    desk.look()
    clone = desk.state / "repository"
    if harm == "emptied objects":
        for path in (clone / ".git" / "objects").rglob("*"):
            if path.is_file():
                path.chmod(0o644)
                path.write_bytes(b"")
    elif harm == "an emptied file":
        (clone / "src" / "archbench" / "__init__.py").unlink()
        blob = git(clone, "rev-parse", "HEAD:src/archbench/__init__.py")
        broken = clone / ".git" / "objects" / blob[:2] / blob[2:]
        broken.chmod(0o644)
        broken.write_bytes(b"")
        (desk.state / "state.json").unlink()
        shutil.rmtree(desk.state / "outbox")
        git(desk.remote, "update-ref", "-d", "refs/heads/machine/pi5")
        assert desk.look().measured == 1
    elif harm == "half a clone":
        clone.rename(desk.state / ".repository.new")
    elif harm == "left locks":
        for name in ("index.lock", "refs/remotes/origin/agent.lock", "HEAD.lock"):
            (clone / ".git" / name).touch()
    else:
        for path in clone.iterdir():
            if path.name != ".git":
                shutil.rmtree(path)
    desk.commit()
    assert desk.look().reasons == ()
    assert len(desk.delivered()) == 2


def test_a_commit_that_was_begun_and_is_gone_leaves_its_cells(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.commit()
    old = desk.commit()
    desk.plays("die:shifted")
    with monkeypatch.context() as patched:
        patched.setattr(worker.Worker, "_failed", _lose_power)
        with pytest.raises(PowerLost):
            desk.look()
    desk.plays()
    git(desk.repository, "reset", "-q", "--hard", "HEAD~1")
    shutil.rmtree(desk.state / "repository")
    new = git(desk.repository, "rev-parse", "HEAD")
    seen = desk.look()
    assert seen.reasons == (f"{old[:12]} is given up: the repository does not hold it any more",)
    assert desk.delivered() == {run_of(old): ["added", "doubled"], run_of(new): ALL}


def test_a_clone_that_cannot_be_mended_now_costs_no_attempt(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = desk.commit()

    def broken(*given: object) -> None:
        raise GitFailed("git checkout: fatal: unable to read tree")

    with monkeypatch.context() as patched:
        patched.setattr(worker.Source, "_check_out", broken)
        for _ in range(4):
            assert desk.look().reasons == ("the clone: git checkout: fatal: unable to read tree",)
    assert (desk.known().commits[commit].attempts, desk.known().commits[commit].deaths) == (0, 0)
    assert desk.look().measured == 1


def test_an_agent_that_lost_its_memory_asks_the_remote(desk: Desk) -> None:
    commit = desk.commit()
    desk.look()
    shutil.rmtree(desk.state / "repository")
    shutil.rmtree(desk.state / "outbox")
    (desk.state / "state.json").unlink()
    assert (desk.look().measured, len(desk.calls())) == (0, 1)
    assert desk.known().commits[commit].reason == "found at the remote"


def test_a_state_that_cannot_be_read_is_said_and_replaced(desk: Desk) -> None:
    commit = desk.commit()
    desk.look()
    (desk.state / "state.json").write_bytes(b"\0" * 100)
    seen = desk.look()
    assert seen.reasons[0].startswith("what was known of commits is lost: ")
    assert desk.known().commits[commit].outcome == "done"
    assert len(desk.calls()) == 1


def test_two_agents_do_not_work_in_one_folder(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PAUSE_S", 0.0)
    desk.state.mkdir(exist_ok=True)
    with (desk.state / "agent.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(AlreadyRunning, match="another agent is at work"):
            desk.look()


def test_anothers_folder_is_left_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setattr(lock.os, "geteuid", lambda: 4_000_000)
    with pytest.raises(Misconfigured, match=f"is the folder of the user {owner}: run this as that user"):
        desk.look()
    assert not (desk.state / "agent.lock").exists()
    assert lock._name(4_000_000) == "4000000"


def test_power_lost_at_every_step_loses_and_doubles_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of a life is in turn where everything ends."""
    commit = desk.commit()
    left = 0

    def until_the_power_goes(step: object) -> object:
        def counted(*given: object, **named: object) -> object:
            nonlocal left
            if left == 0:
                raise PowerLost
            left -= 1
            return step(*given, **named)  # type: ignore[operator]

        return counted

    for owner, name in (
        (worker.Memory, "note"),
        (worker.Outbox, "put"),
        (worker.Outbox, "deliver"),
        (worker.RunFolder, "remove"),
        (worker.Source, "check_out"),
        (worker.Environment, "ready"),
        (worker.Worker, "_archbench"),
    ):
        monkeypatch.setattr(owner, name, until_the_power_goes(getattr(owner, name)))
    for steps in range(30):
        left = steps
        try:
            seen = desk.look()
        except PowerLost:
            continue
        if seen.whole:
            break
    else:
        pytest.fail("it never came to an end")
    left = 1000
    assert desk.look().measured == 0
    assert desk.delivered() == {run_of(commit): ALL}


def test_a_machine_that_goes_down_each_time_gives_the_commit_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = desk.commit()
    monkeypatch.setattr(worker, "DEATHS", 4)
    monkeypatch.setattr(worker.Worker, "_measure", _lose_power)
    for _ in range(4):
        with pytest.raises(PowerLost):
            desk.look()
    assert desk.look().reasons == (f"{commit[:12]} is given up: {worker.DIED}",)


def test_an_interruption_costs_no_attempt(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = desk.commit()

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(worker.Worker, "_measure", interrupted)
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                desk.look()
    assert desk.known().commits[commit].attempts == 0
    assert desk.look().measured == 1


def test_a_full_card_is_a_reason_and_not_a_traceback(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.commit()

    def full(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(worker.Outbox, "put", full)
        assert desk.look().reasons == ("the state folder: [Errno 28] No space left on device",)
    assert desk.look().measured == 1
    assert len(desk.calls()) == 1  # what was measured was still there


def test_a_command_that_talks_without_end_fills_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "LONGEST_LOG", 1 << 16)
    log = tmp_path / "log" / "output.log"
    talks = "for i in 1 2 3 4 5 6 7 8 9 10; do head -c 100000 /dev/zero | tr '\\0' x; echo; sleep 0.1; done"
    ended = child.supervise(
        ["sh", "-c", f"{talks}; sleep 0.5; echo the end"],
        folder=tmp_path,
        environment=dict(os.environ),
        log=log,
        deadline_s=30,
    )
    assert (ended.code, ended.said) == (0, "the end")
    assert log.stat().st_size < 1000


def test_a_child_ends_with_the_agent_that_started_it(tmp_path: Path) -> None:
    """The agent is killed outright; what it started is asked to end by the kernel."""
    script = f"trap 'touch {tmp_path}/asked; exit' TERM; touch {tmp_path}/begun; while :; do sleep 0.1; done"
    program = "import os, sys; from pathlib import Path; from archbench.hardware.agent.child import supervise; "
    program += "supervise(['sh', '-c', sys.argv[1]], folder=Path('/'), environment=dict(os.environ), "
    program += "log=Path(sys.argv[2]), deadline_s=60)"
    agent = subprocess.Popen([sys.executable, "-c", program, script, str(tmp_path / "log")])
    try:
        _wait_for(tmp_path / "begun")
    finally:
        agent.kill()
        agent.wait()
    _wait_for(tmp_path / "asked")


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline, f"{file.name} did not come"
        time.sleep(0.02)
