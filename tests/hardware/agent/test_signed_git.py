"""Git as the agent runs it: in time, in its own surroundings, and with one line of reason."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from archbench.hardware.agent.signed_git import Git, GitFailed, reason_of, require_git
from deliveries import bare


def program(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program called git before the real one."""
    folder.mkdir()
    (folder / "git").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_what_hangs_is_ended_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", f"sleep 60 & echo $! > {tmp_path}/child; wait", monkeypatch)
    with pytest.raises(GitFailed, match=r"git fetch: no answer in 0\.5 s"):
        Git(tmp_path)("fetch", timeout_s=0.5)
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the process git had started lives on")


@pytest.mark.parametrize(("said", "fine"), [("2.33.8", False), ("2.34.0", True), ("3.0.1", True), ("nonsense", False)])
def test_a_git_that_knows_no_ssh_signatures_is_refused(
    said: str, fine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", f"echo git version {said}", monkeypatch)
    if fine:
        assert require_git() >= (2, 34)
    else:
        with pytest.raises(GitFailed, match=r"needs git 2\.34 or newer, here is git version"):
            require_git()


def test_without_git_that_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GitFailed, match="git is not installed"):
        require_git()
    with pytest.raises(GitFailed, match="git is not installed"):
        Git(tmp_path)("version")


def test_the_surroundings_of_whoever_calls_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere = bare(tmp_path / "here.git"), bare(tmp_path / "elsewhere.git")
    for name in ("GIT_DIR", "GIT_OBJECT_DIRECTORY", "GIT_WORK_TREE"):  # as inside a hook of another repository
        monkeypatch.setenv(name, str(elsewhere))
    assert Git(here).text("rev-parse", "--absolute-git-dir") == str(here)
    blob = Git(here)("hash-object", "-w", "--stdin", stdin=b"x").decode().strip()
    assert (here / "objects" / blob[:2] / blob[2:]).exists()
    monkeypatch.delenv("GIT_WORK_TREE")
    held = Git(here, inherit=True)("hash-object", "-w", "--stdin", stdin=b"y").decode().strip()
    assert (elsewhere / held[:2] / held[2:]).exists()  # a hook must see the objects that are being pushed


def test_the_reason_is_the_line_that_says_why() -> None:
    pushed = (
        b"remote: archbench: refused 'machine/pi-5': commit abc: the commit is not signed        \n"
        b"To /srv/results.git\n ! [remote rejected] abc -> machine/pi-5 (pre-receive hook declined)\n"
        b"error: failed to push some refs to '/srv/results.git'\n"
    )
    assert reason_of(pushed) == "archbench: refused 'machine/pi-5': commit abc: the commit is not signed"
    broken = b"error: object 8f: hasDotdot: contains '..'\nfatal: fsck error in packed object\n"
    assert reason_of(broken) == "error: object 8f: hasDotdot: contains '..'"
    assert reason_of(b"fatal: unable to access 'https://x/': Could not resolve host: x\n").endswith("resolve host: x")
    assert reason_of(b"first\nlast\n") == "last"
    assert reason_of(b"") == ""
