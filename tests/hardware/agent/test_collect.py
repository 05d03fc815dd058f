"""Collecting: what is proved joins the results, and every way to cheat is quarantined by name, for its branch alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from archbench.cells import encode
from archbench.hardware.agent import collect as collecting
from archbench.hardware.agent.collect import CannotCollect
from archbench.hardware.agent.signed_report import Collected
from archbench.reports.rows import load
from deliveries import NOW, Entry, World, git, identity, is_clean, run_bytes, run_tree
from delivery_attacks import ATTACKS, BROKEN, FIRST, SECOND, Attack, attack, begin, push
from results_builder import cell, note, run


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Collected]:
    """Every machine delivered a run and was collected; then all attacks came at once, and were collected at once."""
    world, attacks = begin(tmp_path_factory.mktemp("attacks"), [*ATTACKS, *BROKEN])
    first = world.collect()
    assert (len(first.accepted), first.quarantined) == (len(attacks), ())
    assert all(accepted.key for accepted in first.accepted)
    attack(attacks, ATTACKS | BROKEN)
    assert push(attacks, *attacks).returncode == 0
    return world, world.collect()


@pytest.mark.parametrize("name", [*ATTACKS, *BROKEN])
def test_an_attack_is_quarantined_with_its_own_reason(name: str, attacked: tuple[World, Collected]) -> None:
    world, found = attacked
    (stopped,) = (entry for entry in found.quarantined if entry.branch == f"machine/{name}")
    assert (ATTACKS | BROKEN)[name][1] in stopped.reason
    assert stopped.commit in git(world.remote, "rev-list", f"machine/{name}").stdout.split()
    assert json.loads((world.state / "quarantine" / f"{name}.json").read_text())["reason"] == stopped.reason
    assert world.collected(name) == [FIRST]  # what counted stays, and nothing else came


def test_the_others_are_not_affected(attacked: tuple[World, Collected]) -> None:
    world, found = attacked
    assert [(accepted.machine, accepted.run) for accepted in found.accepted] == [("honest", SECOND)]
    assert world.collected("honest") == [FIRST, SECOND]
    assert len(found.quarantined) == len(ATTACKS | BROKEN)
    assert found.exit_code == 1
    assert is_clean(world.state / "mirror.git")
    loaded = load(world.results)
    assert loaded.problems == []
    assert {row.machine for row in loaded.rows} == {*ATTACKS, *BROKEN, "honest"}
    assert all(row.verified for row in loaded.rows)


def test_collecting_again_says_the_same_and_changes_nothing(attacked: tuple[World, Collected]) -> None:
    world, found = attacked
    before = {path: path.read_bytes() for path in world.results.rglob("*") if path.is_file()}
    again = world.collect()
    assert again.quarantined == found.quarantined
    assert again.accepted == ()
    assert {path: path.read_bytes() for path in world.results.rglob("*") if path.is_file()} == before


# ---- what only the results can tell


def one(tmp_path: Path) -> tuple[World, Attack]:
    world, attacks = begin(tmp_path, ["pi-5"])
    assert len(world.collect().accepted) == 2
    return world, attacks["pi-5"]


def send(world: World, a: Attack, commit: str) -> Collected:
    a.forge.point("machine/pi-5", commit)
    git(a.forge.repository, "push", "--quiet", "--force", str(world.remote), "machine/pi-5")
    return world.collect()


def reason(found: Collected) -> str:
    (stopped,) = found.quarantined
    assert stopped.branch == "machine/pi-5"
    return stopped.reason


def records(machine: str, *cells: Any, **changes: Any) -> bytes:
    header = run(machine, SECOND, **changes)
    return b"".join(encode(record) + b"\n" for record in (header, note(), *cells))


def test_a_run_of_tomorrow_is_quarantined(tmp_path: Path) -> None:
    world, a = one(tmp_path)
    tomorrow = (NOW + timedelta(days=2)).isoformat()
    found = send(world, a, a.delivery(run_tree("pi-5", SECOND, started=tomorrow)))
    assert "which is in the future" in reason(found)


def test_samples_of_another_machine_cannot_be_sold_as_ones_own(tmp_path: Path) -> None:
    world, a = one(tmp_path)
    stolen = (world.results / "honest" / "cells" / f"{FIRST}.jsonl").read_bytes().replace(b'"honest"', b'"pi-5"')
    # Dated before the run they were taken from: on the board alone, the honest machine would be the one that copied.
    earlier = stolen.replace(b"2026-01-02T03:04:05", b"2026-01-01T03:04:05").replace(FIRST.encode(), SECOND.encode())
    tree = run_tree("pi-5", SECOND)
    tree["pi-5"]["cells"] = {f"{SECOND}.jsonl": earlier}
    assert "replays the samples of" in reason(send(world, a, a.delivery(tree)))
    assert load(world.results).problems == []


def test_numbers_beyond_physics_and_broken_records_are_quarantined(tmp_path: Path) -> None:
    world, a = one(tmp_path)
    tree = run_tree("pi-5", SECOND)
    tree["pi-5"]["cells"] = {f"{SECOND}.jsonl": records("pi-5", cell("base"), cell("fast", limit_fraction=3.0))}
    assert "limit_fraction is 3" in reason(send(world, a, a.delivery(tree)))
    tree["pi-5"]["cells"] = {f"{SECOND}.jsonl": records("pi-5", schema=99)}
    assert "is of schema 99" in reason(send(world, a, a.delivery(tree)))
    assert world.collected("pi-5") == [FIRST]


def test_a_run_that_lies_in_the_results_already_is_not_overwritten(tmp_path: Path) -> None:
    world, a = one(tmp_path)
    mine = world.results / "pi-5" / "cells" / f"{SECOND}.jsonl"
    mine.write_bytes(run_bytes("pi-5", SECOND))
    before = mine.read_bytes()
    assert "would overwrite another run of that name" in reason(send(world, a, a.delivery()))
    assert mine.read_bytes() == before


def test_descriptions_all_machines_share_are_added_to_and_never_changed(tmp_path: Path) -> None:
    world, a = one(tmp_path)
    (world.results / "benchmarks.json").write_text('{"a.track_x": {"unit": "s"}, "version": 2}')
    told = b'{"a.track_x": {"unit": "<script>"}, "b.track_y": {"unit": "B"}, "version": 9}'
    tree = run_tree("pi-5", SECOND) | {"benchmarks.json": told}
    assert send(world, a, a.delivery(tree)).quarantined == ()
    assert json.loads((world.results / "benchmarks.json").read_text()) == {
        "a.track_x": {"unit": "s"},
        "b.track_y": {"unit": "B"},
        "version": 2,
    }


def test_of_deliveries_that_come_together_only_the_bad_one_stops(tmp_path: Path) -> None:
    world, attacks = begin(tmp_path, ["pi-4", "pi-5", "pi-6"])
    assert len(world.collect().accepted) == 4
    for name, a in attacks.items():
        second, third = run_tree(name, SECOND), run_tree(name, identity(3))
        if name == "pi-5":
            second[name]["cells"] = {f"{SECOND}.jsonl": records(name, cell("base"), cell("fast", limit_fraction=3.0))}
        commit = a.forge.commit({"runs": (runs := a.runs | {SECOND: second})}, [a.first], a.key())
        commit = a.forge.commit({"runs": runs | {identity(3): third}}, [commit], a.key())
        a.forge.point(f"machine/{name}", commit)
    assert push(attacks, *attacks).returncode == 0
    found = world.collect()
    (stopped,) = found.quarantined
    assert (stopped.branch, stopped.behind) == ("machine/pi-5", 1)
    assert "limit_fraction is 3" in stopped.reason
    for name in attacks:
        assert world.collected(name) == ([FIRST] if name == "pi-5" else [FIRST, SECOND, identity(3)])


def test_many_deliveries_are_taken_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MOST", 2)
    world, attacks = begin(tmp_path, ["pi-5"])
    a, commit, runs = attacks["pi-5"], attacks["pi-5"].first, attacks["pi-5"].runs
    for number in range(2, 7):
        tree = run_tree("pi-5", identity(number), **({"schema": 99} if number == 5 else {}))
        runs = runs | {identity(number): tree}
        commit = a.forge.commit({"runs": runs}, [commit], a.key())
    found = send(world, a, commit)
    assert [stopped.behind for stopped in found.quarantined] == [1]
    assert world.collected("pi-5") == [identity(number) for number in range(1, 5)]


# ---- branches


@pytest.mark.parametrize("branch", ["machine/a/b", "machine/-x", "machine/µ", "machine/" + "x" * 101])
def test_a_branch_with_an_odd_name_is_quarantined(branch: str, tmp_path: Path) -> None:
    world, a = one(tmp_path)
    git(a.forge.repository, "push", "--quiet", str(world.remote), f"{a.first}:refs/heads/{branch}")
    (stopped,) = world.collect().quarantined
    assert stopped.reason == "the branch's name is not one a machine can have"
    git(world.remote, "update-ref", "-d", f"refs/heads/{branch}")
    assert world.collect().quarantined == ()
    assert list((world.state / "quarantine").iterdir()) == []


def test_a_branch_that_only_ends_like_a_machines_is_quarantined(tmp_path: Path) -> None:
    world, a = one(tmp_path)
    git(a.forge.repository, "push", "--quiet", str(world.remote), f"{a.first}:refs/heads/refs/heads/machine/pi-9")
    (stopped,) = world.collect().quarantined
    assert stopped.reason == "the branch's name is not one a machine can have"


def test_a_branch_that_is_gone_is_said_and_its_results_stay(tmp_path: Path) -> None:
    world, _ = one(tmp_path)
    git(world.remote, "update-ref", "-d", "refs/heads/machine/pi-5")
    assert "the branch was deleted at the remote" in reason(world.collect())
    assert world.collected("pi-5") == [FIRST]


def test_a_branch_that_went_back_is_a_history_rewritten(tmp_path: Path) -> None:
    world, a = one(tmp_path)
    second = a.delivery()
    assert send(world, a, second).quarantined == ()
    assert "the history was rewritten" in reason(send(world, a, a.first))
    assert send(world, a, second).quarantined == ()  # put back, as the reason says


def test_commits_behind_a_bad_one_wait_and_come_when_it_is_skipped(tmp_path: Path) -> None:
    world, a = one(tmp_path)
    bad = a.with_file("pi-5/run.sh", b"rm -rf /")
    runs = a.runs | {SECOND: {**run_tree("pi-5", SECOND)}, identity(3): run_tree("pi-5", identity(3))}
    git(a.forge.repository, "cat-file", "-e", bad)
    listed = git(a.forge.repository, "ls-tree", f"{bad}:runs", SECOND).stdout.split()[2]
    runs[SECOND] = Entry("40000", listed)  # the next commit leaves the bad one's files as they are
    later = a.forge.commit({"runs": runs}, [bad], a.key())
    found = send(world, a, later)
    (stopped,) = found.quarantined
    assert (stopped.commit, stopped.behind) == (bad, 1)
    assert world.collect(skip=["0" * 12]).unmet == ("0" * 12,)
    found = world.collect(skip=[bad[:12]])
    assert (found.skipped, found.quarantined, found.exit_code) == ((bad,), (), 0)
    assert world.collected("pi-5") == [FIRST, identity(3)]


def test_an_owner_may_vouch_for_a_commit_and_its_rows_are_not_called_verified(tmp_path: Path) -> None:
    world, a = one(tmp_path)
    unsigned = a.delivery(key=None)
    assert "is not signed" in reason(send(world, a, unsigned))
    found = world.collect(accept=[unsigned])
    assert [(accepted.run, accepted.key) for accepted in found.accepted] == [(SECOND, "")]
    rows = [row for row in load(world.results).rows if row.machine == "pi-5"]
    assert {row.run for row in rows} == {SECOND}
    assert not any(row.verified for row in rows)


def test_vouching_does_not_let_a_foreign_file_in(tmp_path: Path) -> None:
    world, a = one(tmp_path)
    foreign = a.with_file("honest/cells/x.jsonl", b"{}\n")
    send(world, a, foreign)
    assert "lies in the folder of 'honest'" in reason(world.collect(accept=[foreign]))


# ---- the collector's own life


def test_a_collector_that_lost_its_notes_goes_on_where_the_proofs_end(tmp_path: Path) -> None:
    world, a = one(tmp_path)
    shutil.rmtree(world.state)
    world.allowed.write_text(world.allowed.read_text().replace(" namespaces", ' valid-before="20260101",namespaces'))
    assert world.collect().lines() == ["nothing new"]  # what was verified while the keys were valid stays verified
    assert "is not valid today" in reason(send(world, a, a.delivery()))


def test_a_broken_mirror_is_made_again(tmp_path: Path) -> None:
    world, a = one(tmp_path)
    (world.state / "mirror.git.in-use").touch()  # what a power cut leaves
    for path in list((world.state / "mirror.git" / "objects").rglob("*")):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"")
    found = send(world, a, a.delivery())
    assert ([accepted.run for accepted in found.accepted], found.quarantined) == ([SECOND], ())
    assert is_clean(world.state / "mirror.git")


def test_what_cannot_be_begun_is_said(tmp_path: Path) -> None:
    world, _ = one(tmp_path)
    allowed, world.allowed = world.allowed, tmp_path / "nobody"
    with pytest.raises(CannotCollect, match=r"there is no .*nobody"):
        world.collect()
    world.allowed = allowed
    with pytest.raises(CannotCollect, match="'HEAD' is not a commit"):
        world.collect(accept=["HEAD"])
    (world.state / "remote").write_text("elsewhere\n")
    with pytest.raises(CannotCollect, match="collects from elsewhere: give another --state"):
        world.collect()
    world.remote, world.state = tmp_path / "gone.git", tmp_path / "other"
    with pytest.raises(CannotCollect, match=r"gone\.git"):
        world.collect()


def alone(world: World) -> Collected:
    """Collect as soon as nobody else does: git's processes of a killed collector live on for a moment."""
    for _ in range(200):
        try:
            return world.collect()
        except CannotCollect as error:
            assert "another collect is at work" in str(error)  # noqa: PT017
            time.sleep(0.05)
    raise AssertionError("the lock is never free")


COLLECT = """
import sys
from pathlib import Path
from deliveries import World
world = World(Path(sys.argv[1]))
print("begun", flush=True)
world.collect()
"""


def test_killed_at_any_moment_it_goes_on_and_takes_every_run_once(tmp_path: Path) -> None:
    world, attacks = begin(tmp_path, [f"pi-{i}" for i in range(4)])
    for a in attacks.values():
        a.forge.point(f"machine/{a.machine}", a.delivery())
    push(attacks, *attacks)
    kills = int(os.environ.get("ARCHBENCH_KILLS", "6"))
    for i in range(kills):
        command = [sys.executable, "-c", COLLECT, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.7 * i / kills)
            process.send_signal(signal.SIGKILL)
    found = alone(world)
    assert found.quarantined == ()
    for machine in attacks:
        assert world.collected(machine) == [FIRST, SECOND]
        proofs = (world.results / machine / "verified.jsonl").read_text().splitlines()
        assert len({json.loads(line)["commit"] for line in proofs}) == len(proofs) == 2
    assert is_clean(world.state / "mirror.git")
    assert load(world.results).problems == []


def test_the_time_is_given_and_ends_up_in_the_proof(tmp_path: Path) -> None:
    world, _ = begin(tmp_path, ["pi-5"])
    world.collect(now=lambda: datetime(2026, 1, 20, tzinfo=UTC))
    (proof,) = map(json.loads, (world.results / "pi-5" / "verified.jsonl").read_text().splitlines())
    assert proof["collected"] == "2026-01-20T00:00:00+00:00"
    assert proof["key"] == world.key("pi-5").fingerprint
    assert git(world.remote, "log", "-1", "--format=%H", "machine/pi-5").stdout.strip() == proof["commit"]
