"""Delivering to a remote and from a card that are not what they were, and from a repository a power cut broke."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from archbench.hardware.agent import deliver as delivering
from archbench.hardware.agent.deliver import Courier
from archbench.hardware.agent.outbox import Delivered
from archbench.hardware.agent.signed_git import Git
from deliveries import Forge, World, filled, git, identity, is_clean, names, repository, run_tree


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_card_restored_to_an_older_day_goes_on_from_the_remotes_day(world: World) -> None:
    outbox = filled(world, 1)
    outbox.deliver()
    shutil.copytree(world.folder / "state-pi-5", world.folder / "backup")
    filled(world, 2, 3)
    outbox.deliver()
    shutil.rmtree(world.folder / "state-pi-5")
    (world.folder / "backup").rename(world.folder / "state-pi-5")
    outbox = filled(world, 2, 4)  # one it delivered already and does not remember
    assert outbox.deliver() == Delivered(names(2, 4), ())
    assert world.runs("pi-5") == list(names(1, 2, 3, 4))


def test_a_new_card_with_the_old_key_goes_on(world: World) -> None:
    filled(world, 1, 2).deliver()
    outbox = filled(world, 3, state="new-card")
    assert outbox.deliver() == Delivered(names(3), ())
    assert world.runs("pi-5") == list(names(1, 2, 3))


@pytest.mark.parametrize("left", ["one", "none"])
def test_a_remote_restored_from_a_backup_gets_the_very_commits_it_had(left: str, world: World) -> None:
    outbox = filled(world, 1, 2, 3)
    outbox.deliver()
    assert len(world.collect().accepted) == 3
    tip = git(world.remote, "rev-parse", "machine/pi-5").stdout.strip()
    if left == "one":
        git(world.remote, "update-ref", "refs/heads/machine/pi-5", f"{tip}~2")
    else:
        git(world.remote, "update-ref", "-d", "refs/heads/machine/pi-5")
    filled(world, 4)
    assert outbox.deliver() == Delivered(names(4), ())
    assert world.runs("pi-5") == list(names(1, 2, 3, 4))
    assert git(world.remote, "rev-parse", "machine/pi-5~1").stdout.strip() == tip
    assert world.collect().quarantined == ()


def test_a_remote_with_another_history_gets_what_it_lacks(world: World) -> None:
    outbox = filled(world, 1, 2)
    outbox.deliver()
    forge = Forge(world.remote)
    forge.point("machine/pi-5", forge.commit({"runs": {identity(7): run_tree("pi-5", identity(7))}}))
    filled(world, 3)
    assert outbox.deliver() == Delivered(names(3), ())
    assert world.runs("pi-5") == list(names(1, 2, 3, 7))


def test_somebody_who_pushes_in_between_is_built_upon(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = filled(world, 1)
    once = iter([True])
    commit: Callable[..., str | None] = Courier._commit

    def slow(self: Courier, *arguments: object) -> str | None:
        made = commit(self, *arguments)
        if next(once, False):
            forge = Forge(world.remote)
            forge.point("machine/pi-5", forge.commit({"runs": {identity(7): run_tree("pi-5", identity(7))}}))
        return made

    monkeypatch.setattr(Courier, "_commit", slow)
    assert outbox.deliver() == Delivered(names(1), ())
    assert world.runs("pi-5") == list(names(1, 7))


def test_a_remote_that_forgets_what_is_pushed_is_not_believed(world: World) -> None:
    forget = world.remote / "hooks" / "post-receive"
    forget.parent.mkdir(exist_ok=True)
    forget.write_text("#!/bin/sh\ngit update-ref -d refs/heads/machine/pi-5\n")
    forget.chmod(0o755)
    outbox = filled(world, 1)
    assert outbox.deliver() == Delivered((), names(1), "the remote does not show what was pushed to it")


def test_another_run_of_the_same_name_is_kept_and_said(world: World) -> None:
    filled(world, 1).deliver()
    outbox = filled(world, 1, 2, state="other-card")  # with samples of its own
    done = outbox.deliver()
    assert (done.sent, done.waiting) == (names(2), names(1))
    assert "holds something else under the name of run" in done.reason


# ---- a repository that a power cut broke


def damage_objects(place: Path) -> None:
    for path in list((place / "objects").rglob("*")):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"")


def damage_names(place: Path) -> None:
    for name in ("HEAD", "config"):
        (place / name).write_bytes(b"")


def leave_locks(place: Path) -> None:
    for name in ("refs/heads/machine/pi-5.lock", "packed-refs.lock", "HEAD.lock", "refs/archbench/delivered.lock"):
        (place / name).touch()
    (place / "objects" / "tmp_objdir-abc").mkdir()
    (place / "objects" / "pack" / "tmp_pack_abc").touch()


def half_of_it(place: Path) -> None:
    shutil.rmtree(place / "refs")


@pytest.mark.parametrize("damage", [damage_objects, damage_names, leave_locks, half_of_it])
def test_a_broken_repository_is_mended_or_made_again(damage: Callable[[Path], None], world: World) -> None:
    outbox = filled(world, 1, 2)
    outbox.deliver()
    damage(repository(outbox))
    (outbox.folder / "repository.git.in-use").touch()  # there before anything is written, gone when all is
    filled(world, 3)
    assert outbox.deliver() == Delivered(names(3), ())
    assert world.runs("pi-5") == list(names(1, 2, 3))
    assert is_clean(repository(outbox))
    assert not (outbox.folder / "repository.git.in-use").exists()


def test_many_small_objects_are_packed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivering, "LOOSE", 5)
    outbox = filled(world, 1, 2)
    assert outbox.deliver() == Delivered(names(1, 2), ())
    assert Git(repository(outbox)).text("count-objects").startswith("0 objects")
    filled(world, 3)
    assert outbox.deliver() == Delivered(names(3), ())
    assert is_clean(repository(outbox))
