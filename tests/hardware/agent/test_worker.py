"""A look of the agent: what it measures and what it leaves, what each fault is called, and that nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from agent_desk import Desk, git, run_of
from archbench.hardware.agent import child, worker
from archbench.hardware.agent.config import Misconfigured
from archbench.hardware.preflight import Obstacle

ALL = ["added", "doubled", "shifted"]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_new_commit_is_measured_delivered_and_left_alone(desk: Desk) -> None:
    commit = desk.commit()
    seen = desk.look()
    assert (seen.whole, seen.measured, seen.reasons) == (True, 1, ())
    assert desk.delivered() == {run_of(commit): ALL}
    met = desk.known().commits[commit]
    assert (met.outcome, met.cells, met.run) == ("done", 3, run_of(commit))
    assert not list((desk.state / "work").iterdir())
    again = desk.look()
    assert (again.whole, again.measured) == (True, 0)
    assert len(desk.calls()) == 1
    words, machine, _ = desk.calls()[0]
    assert (words[:2], words[-1], machine) == (["run", "quick"], "--force", "pi5")


def test_a_commit_that_measures_nothing_else_is_no_new_commit(desk: Desk) -> None:
    desk.commit()
    desk.look()
    for path in ("docs/agent.md", "reports/results/pi5/cells/a.jsonl", "README.md", "tests/test_a.py"):
        desk.commit(path)
    assert desk.look().measured == 0
    code = desk.commit("kernels/quick/added.py")
    assert desk.look().measured == 1
    assert desk.known().commits[code].outcome == "done"


def test_the_newest_comes_first_and_depth_says_how_many(tmp_path: Path) -> None:
    desk = Desk(tmp_path, depth=2)
    commits = [desk.commit() for _ in range(3)]
    assert desk.look().measured == 2
    numbers = {commit: desk.known().commits[commit].number for commit in commits[1:]}
    assert numbers[commits[2]] < numbers[commits[1]]
    assert set(desk.delivered()) == {run_of(commits[1]), run_of(commits[2])}


def test_nothing_before_a_date_is_measured(tmp_path: Path) -> None:
    desk = Desk(tmp_path, depth=5, since="2026-03-01")
    desk.commit(when="2026-02-01T00:00:00+00:00")
    young = desk.commit(when="2026-04-01T00:00:00+00:00")
    assert desk.look().measured == 1
    assert set(desk.known().commits) == {young}


def test_other_suites_ask_the_commit_again_and_fewer_do_not(desk: Desk) -> None:
    desk.commit()
    desk.given["suites"] = ["quick", "norm"]
    assert desk.look().measured == 1
    desk.given["suites"] = ["norm"]
    assert desk.look().measured == 0
    desk.given["suites"] = ["norm", "attention"]
    assert desk.look().measured == 1


def test_commands_come_before_the_run_and_cores_are_counted(tmp_path: Path) -> None:
    desk = Desk(tmp_path, prepare=["edge build tiny"], threads=1)
    commit = desk.commit()
    desk.plays("unprepared")
    seen = desk.look()
    assert seen.reasons == (f"{commit[:12]}: preparing ended with 1: no such model",)
    desk.plays()
    assert desk.look().whole
    assert [words[:3] for words, _, _ in desk.calls()][1:] == [["edge", "build", "tiny"], desk.calls()[-1][0][:3]]
    assert {cores for _, _, cores in desk.calls()} == {1}


def test_a_broken_commit_is_named_skipped_and_tried_again_when_asked(desk: Desk) -> None:
    commit = desk.commit()
    desk.plays("broken")
    for attempt in (1, 2):
        assert desk.look().reasons == (f"{commit[:12]}: the run ended with 1: ImportError: a broken commit",)
        assert desk.known().commits[commit].attempts == attempt
    assert desk.look().reasons[1].startswith(f"{commit[:12]} is given up: the run ended with 1")
    assert desk.known().commits[commit].outcome == "skipped"
    assert (desk.look().whole, len(desk.calls())) == (True, 3)
    desk.plays()
    assert desk.look([commit[:10]]).measured == 1
    assert desk.known().commits[commit].outcome == "done"
    assert desk.look(["nonsense"]).reasons == ("no commit 'nonsense' is known",)


def test_a_run_that_leaves_nothing_is_no_run(desk: Desk) -> None:
    commit = desk.commit()
    desk.plays("idle")
    assert desk.look().reasons == (f"{commit[:12]}: archbench run ended without the file of a run",)


def test_a_machine_of_another_name_begins_anew(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    commit = desk.commit()
    desk.plays("die:doubled")
    desk.look()
    number = desk.known().number
    desk.given["machine"] = "pi6"
    desk.plays()
    assert desk.look().measured == 1
    assert "the machine was called pi5 before" in caplog.text
    assert desk.known().commits[commit].number > number
    assert desk.delivered() == {}
    assert git(desk.remote, "ls-tree", "-r", "--name-only", "machine/pi6").endswith(f"pi6/cells/{run_of(commit)}.jsonl")


def test_a_name_is_not_changed_while_runs_of_it_wait(desk: Desk) -> None:
    desk.commit()
    desk.remote.rename(desk.folder / "away.git")
    desk.look()
    desk.given["machine"] = "pi6"
    for _ in range(2):
        with pytest.raises(Misconfigured, match="runs of pi5 wait to be delivered, and machine is pi6"):
            desk.look()


def test_cells_that_cannot_be_delivered_are_named_and_block_nothing(desk: Desk) -> None:
    commit = desk.commit()
    desk.given["attempts"] = 1
    desk.plays("die:doubled")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(worker.Outbox, "put", _refuse)
        desk.look()
        seen = desk.look()
    assert seen.reasons[1] == f"what is there of run {run_of(commit)} cannot be delivered: too large"
    assert desk.known().commits[commit].outcome == "skipped"


def _refuse(*given: object) -> None:
    raise ValueError("too large")


def test_another_code_of_the_agent_tries_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = desk.commit()
    desk.given["attempts"] = 1
    desk.plays("broken")
    desk.look()
    desk.plays()
    assert desk.look().measured == 0
    monkeypatch.setattr(worker, "own_code", lambda: "newer")
    assert desk.look().measured == 1
    assert desk.known().commits[commit].outcome == "done"


def test_a_hanging_run_is_ended_with_all_it_started(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GRACE_S", 0.5)
    commit = desk.commit()
    desk.given["deadline_s"] = 1.5
    desk.plays("hang:doubled", "deaf")
    seen = desk.look()
    assert seen.reasons == (f"{commit[:12]}: the run took more than 1.5 s; it goes on in the next look",)
    assert not psutil.pid_exists(int((desk.folder / "hanging").read_text()))
    # One cell more was finished, so this was no vain attempt; the next look goes on behind it.
    assert (desk.known().commits[commit].attempts, desk.known().commits[commit].cells) == (0, 1)
    desk.plays()
    assert desk.look().measured == 1
    assert desk.delivered() == {run_of(commit): ALL}


def test_what_was_measured_of_a_commit_that_is_given_up_is_delivered(desk: Desk) -> None:
    commit = desk.commit()
    desk.given["attempts"] = 2
    desk.plays("die:shifted")
    seen = [desk.look() for _ in range(3)]
    assert [look.measured for look in seen] == [0, 0, 1]
    assert desk.known().commits[commit].outcome == "skipped"
    assert desk.delivered() == {run_of(commit): ["added", "doubled"]}


def test_an_unfinished_commit_nobody_comes_back_to_leaves_its_cells(desk: Desk) -> None:
    old = desk.commit()
    desk.plays("die:doubled")
    desk.look()
    desk.plays()
    new = desk.commit()
    assert desk.look().measured == 1
    assert desk.delivered() == {run_of(old): ["added"], run_of(new): ALL}
    assert not list((desk.state / "work").iterdir())


def test_what_stands_in_the_way_is_said_and_costs_no_attempt(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = desk.commit()
    asked = {}

    def hot(**limits: object) -> list[Obstacle]:
        asked.update(limits)
        return [Obstacle("heat", "81 °C before the run", "let it cool")]

    monkeypatch.setattr(worker, "preflight", hot)
    seen = desk.look()
    assert seen.reasons == ("not measured: heat: 81 °C before the run. To mend it: let it cool",)
    assert desk.calls() == []
    assert commit not in desk.known().commits
    assert asked == {"folders": [desk.state], "min_free_bytes": 0, "max_temperature_c": 70.0}


def test_a_clock_that_is_behind_the_commit_measures_nothing(desk: Desk) -> None:
    commit = desk.commit(when="2099-01-01T00:00:00+00:00")
    assert desk.look().reasons == (
        f"not measured: the clock is behind: commit {commit[:12]} is of 2099-01-01T00:00:00Z",
    )
    assert desk.calls() == []


def test_a_clock_that_was_moved_back_is_said_and_loses_nothing(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.commit()
    desk.look()
    state = json.loads((desk.state / "state.json").read_text())
    state["last"]["when"] = "2099-01-01T00:00:00+00:00"
    (desk.state / "state.json").write_text(json.dumps(state))
    newer = desk.commit()
    assert desk.look().whole
    assert "the clock was moved back: the last look ended at 2099-01-01T00:00:00+00:00" in caplog.text
    known = desk.known()
    assert known.commits[newer].number == max(met.number for met in known.commits.values())
    assert len(desk.delivered()) == 2
