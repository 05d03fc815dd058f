"""The hook: what ``collect`` would quarantine does not even arrive, and the hook needs nothing of this project."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from archbench.hardware.agent import signed_hook
from deliveries import World, git, identity, is_clean
from delivery_attacks import ATTACKS, BROKEN, Attack, attack, begin, push

# The packs of these are refused by git itself, before the hook is asked.
BY_GIT = set(BROKEN)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, dict[str, Attack], str]:
    """A remote with the hook, after all attacks were pushed at once; with what it answered."""
    world, attacks = begin(tmp_path_factory.mktemp("attacks"), [*ATTACKS, *BROKEN])
    (world.revoked).touch()
    signed_hook.install(world.remote, world.allowed)
    git(world.remote, "config", "archbench.revokedKeys", str(world.revoked))
    attack(attacks, ATTACKS | BROKEN)
    done = push(attacks, *ATTACKS)
    assert done.returncode != 0
    return world, attacks, done.stderr


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_with_its_own_reason(name: str, attacked: tuple[World, dict[str, Attack], str]) -> None:
    world, attacks, said = attacked
    (line,) = (line for line in said.splitlines() if f"archbench: refused 'machine/{name}': " in line)
    assert ATTACKS[name][1] in line
    assert git(world.remote, "rev-parse", f"machine/{name}").stdout.strip() == attacks[name].first


@pytest.mark.parametrize("name", BROKEN)
def test_broken_objects_are_refused_by_git_itself(name: str, attacked: tuple[World, dict[str, Attack], str]) -> None:
    world, attacks, _ = attacked
    done = push(attacks, name)
    assert BROKEN[name][1] in done.stderr
    assert git(world.remote, "rev-parse", f"machine/{name}").stdout.strip() == attacks[name].first


def test_an_honest_push_arrives_and_the_remote_is_clean(attacked: tuple[World, dict[str, Attack], str]) -> None:
    world, attacks, _ = attacked
    assert push(attacks, "honest").returncode == 0
    assert world.runs("honest") == [identity(1), identity(2)]
    assert is_clean(world.remote)


def remote_with_hook(tmp_path: Path) -> tuple[World, Attack]:
    world, attacks = begin(tmp_path, ["pi-5"])
    signed_hook.install(world.remote, world.allowed)
    return world, attacks["pi-5"]


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        ("refs/heads/main", "only branches machine/<name> are taken here"),
        ("refs/tags/v1", "only branches machine/<name> are taken here"),
        ("refs/heads/machine/a/b", "only branches machine/<name> are taken here"),
        ("refs/heads/machine/-x", "only branches machine/<name> are taken here"),
        ("refs/heads/refs/heads/machine/pi-5", "only branches machine/<name> are taken here"),
        ("refs/heads/machine/pi-6", "signed by the key of pi-5, on the branch of pi-6"),
    ],
)
def test_other_refs_are_refused(ref: str, reason: str, tmp_path: Path) -> None:
    world, a = remote_with_hook(tmp_path)
    done = git(a.forge.repository, "push", str(world.remote), f"{a.first}:{ref}", check=False)
    assert reason in done.stderr
    assert git(world.remote, "rev-parse", "--verify", "--quiet", ref, check=False).returncode != 0


def test_a_branch_is_neither_deleted_nor_taken_back(tmp_path: Path) -> None:
    world, a = remote_with_hook(tmp_path)
    second = a.delivery()
    git(a.forge.repository, "push", "--quiet", str(world.remote), f"{second}:refs/heads/machine/pi-5")
    gone = git(a.forge.repository, "push", str(world.remote), ":refs/heads/machine/pi-5", check=False)
    assert "a machine's branch is never deleted" in gone.stderr
    back = git(a.forge.repository, "push", str(world.remote), f"+{a.first}:refs/heads/machine/pi-5", check=False)
    assert "the history was rewritten" in back.stderr
    assert git(world.remote, "rev-parse", "machine/pi-5").stdout.strip() == second


def test_without_a_list_of_signers_nothing_is_taken(tmp_path: Path) -> None:
    world, a = remote_with_hook(tmp_path)
    spec = f"{a.delivery()}:refs/heads/machine/pi-5"
    world.allowed.rename(tmp_path / "elsewhere")
    assert "nobody may sign" in git(a.forge.repository, "push", str(world.remote), spec, check=False).stderr
    (tmp_path / "elsewhere").rename(world.allowed)
    git(world.remote, "config", "archbench.revokedKeys", "missing")
    assert "which is not there" in git(a.forge.repository, "push", str(world.remote), spec, check=False).stderr
    git(world.remote, "config", "--unset", "archbench.revokedKeys")
    assert git(a.forge.repository, "push", str(world.remote), spec, check=False).returncode == 0


def test_the_lock_of_a_receiver_that_was_killed_does_not_block_for_ever(tmp_path: Path) -> None:
    world, a = remote_with_hook(tmp_path)
    lock = world.remote / "refs" / "heads" / "machine" / "pi-5.lock"
    lock.touch()
    spec = f"{a.delivery()}:refs/heads/machine/pi-5"
    young = git(a.forge.repository, "push", str(world.remote), spec, check=False)
    assert young.returncode != 0  # somebody may be at work
    os.utime(lock, (time.time() - 7200,) * 2)
    assert git(a.forge.repository, "push", str(world.remote), spec, check=False).returncode == 0
    assert not lock.exists()


def test_the_hook_runs_without_this_project(tmp_path: Path) -> None:
    text = signed_hook.text()
    names = Counter(
        node.name for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    ) + Counter(
        target.id
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    )
    assert [name for name, count in names.items() if count > 1] == []  # modules that became one share their names
    imported = {
        alias.name.partition(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    }
    assert imported <= sys.stdlib_module_names
    hook = tmp_path / "pre-receive"
    hook.write_text(text)
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(hook)],
        input="",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "GIT_DIR": "."},
    )
    assert (done.returncode, done.stderr.count("archbench: refused")) == (1, 1)  # no repository here


def test_installing_again_brings_the_hook_up_to_date(tmp_path: Path) -> None:
    world, _ = remote_with_hook(tmp_path)
    hook = world.remote / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\n# archbench, an older one\n")
    assert signed_hook.main([str(world.remote), str(world.allowed)]) == 0
    assert hook.read_text() == signed_hook.text()
    assert hook.stat().st_mode & 0o111
    assert git(world.remote, "config", "receive.fsckObjects").stdout.strip() == "true"


def test_what_cannot_be_installed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world, _ = begin(tmp_path, ["pi-5"])
    hook = world.remote / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 0\n")
    for arguments, reason in (
        ([str(world.remote), str(world.allowed)], "is another hook"),
        ([str(world.remote), str(tmp_path / "none")], "another hook"),
        ([str(tmp_path), str(tmp_path / "none")], "there is no"),
        ([str(tmp_path), str(world.allowed)], "not a git repository"),
        ([], "usage:"),
    ):
        assert signed_hook.main(arguments) == 2
        assert reason in capsys.readouterr().err
    assert hook.read_text() == "#!/bin/sh\nexit 0\n"
