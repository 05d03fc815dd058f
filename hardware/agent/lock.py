"""The lock of a state folder: one agent works in it, and whatever that one started.

Children inherit the open file, so a lock outlives an agent that was killed until they have ended too.

Source: flock(2)
"""

from __future__ import annotations

import fcntl
import os
import pwd
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from archbench.hardware.agent.config import Misconfigured

FILE = "agent.lock"
TRIES, PAUSE_S = 10, 0.1  # who only asks whether an agent is at work holds the lock for a moment


class AlreadyRunning(RuntimeError):
    """Another agent, or something it started, is at work in this state folder."""


@contextmanager
def alone(state: Path) -> Iterator[int]:
    """Hold a state folder's lock; gives its descriptor.

    Raises AlreadyRunning, Misconfigured for the folder of another user, OSError.
    """
    state.mkdir(parents=True, exist_ok=True)
    owner = state.stat().st_uid
    if owner != os.geteuid():  # what root leaves there, the service could not touch
        raise Misconfigured(f"{state} is the folder of the user {_name(owner)}: run this as that user, with sudo -u")
    with (state / FILE).open("a") as lock:
        for left in reversed(range(TRIES)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    raise AlreadyRunning(f"another agent is at work in {state}") from None
                time.sleep(PAUSE_S)
        yield lock.fileno()


def is_running(state: Path) -> bool:
    """Whether an agent, or something it started, is at work."""
    try:
        lock = os.open(state / FILE, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
