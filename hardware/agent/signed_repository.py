"""A bare repository that is a tool and not a store: what breaks it is found, and it is made again.

Power cuts leave lock files, half packs and objects of no bytes. A mark on the disk says that somebody is at work; where
it is found at the start, the last one did not end, and the repository is cleared of what he left and looked through.
What cannot be trusted is thrown away: its owner knows how to fill a new one.

Source: git-fsck(1); git-config(1), core.fsync
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

from archbench.hardware.agent.keys import see_to_disk
from archbench.hardware.agent.signed_git import Git, GitFailed, require_git

FSCK_S = 1800.0


def settings() -> dict[str, str]:
    """What git is told at every call: a configuration file of no bytes, after a power cut, changes nothing."""
    durable = {"core.fsync": "all"} if require_git() >= (2, 36) else {"core.fsyncObjectFiles": "true"}
    return durable | {
        "core.hooksPath": os.devnull,
        "fetch.fsckObjects": "true",
        "gc.auto": "0",
        "http.lowSpeedLimit": "500",
        "http.lowSpeedTime": "60",
        "maintenance.auto": "false",
    }


def begin(git: Git) -> None:
    """Make the repository ready and leave the mark. The caller holds a lock, so nobody else is in it.

    Raises GitFailed, OSError.
    """
    place, mark = git.repository, _mark(git)
    place.parent.mkdir(parents=True, exist_ok=True)
    for old in place.parent.glob(f".{place.name}-*"):
        shutil.rmtree(old)
    if place.exists() and mark.exists():
        for left in (*place.rglob("*.lock"), *place.glob("objects/**/tmp_*")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if not is_sound(git):
            os.rename(place, gone := place.parent / f".{place.name}-{secrets.token_hex(4)}")
            shutil.rmtree(gone)
    if not place.exists():
        staged = place.parent / f".{place.name}-{secrets.token_hex(4)}"
        Git(staged)("init", "--quiet", "--bare", "--template=", str(staged))
        os.rename(staged, place)
    mark.touch()
    see_to_disk(mark.parent)


def end(git: Git) -> None:
    """Take the mark away: everything was finished in order."""
    _mark(git).unlink()


def is_sound(git: Git) -> bool:
    """Whether every object is there and is what its name says."""
    with contextlib.suppress(GitFailed):
        return git.ask("fsck", "--full", "--strict", "--no-dangling", timeout_s=FSCK_S).returncode == 0
    return False


def _mark(git: Git) -> Path:
    return git.repository.with_name(f"{git.repository.name}.in-use")
