"""A run on several hosts, as each of them sees it: the first measures, the others follow.

What the hosts say to each other is the track's: a module ``_nodes`` of its package, run as a process of its own. The
first host's answers ``ready`` when everybody is there, and keeps them together until it reads ``end``; one that follows
ends when the first is done. Both end when their standard input does, so nothing outlives the run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import psutil

from archbench.discovery import track_modules
from archbench.harness.front import Interrupted, measuring_alone
from archbench.nodes import Nodes

PATIENCE_S = 15.0


def module_of(tracks: Iterable[str]) -> str:
    """What runs beside a run of these tracks. Raises ValueError where they do not work on several hosts."""
    names = list(tracks)
    modules = {name: f"{track_modules()[name]}._nodes" for name in names}
    for name, module in modules.items():
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"{name} measures one host: leave --nnodes and --rdzv-endpoint out")
    if len(names) != 1:
        raise ValueError(f"several hosts measure one track at a time: name one of {', '.join(names)}")
    return modules[names[0]]


def _started(module: str, verb: str, nodes: Nodes, output: int | None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, verb],
        stdin=subprocess.PIPE,
        stdout=output,
        text=True,
        env=os.environ | nodes.environment(),
        process_group=0,  # Ctrl-C is for us: how it ends is ours to say
    )


@contextmanager
def led(nodes: Nodes, tracks: Iterable[str], say: Callable[[str], None]) -> Iterator[None]:
    """Within: the other hosts follow, and what is started knows of them. Nothing where there is one host only.

    Raises ValueError where they cannot be met, Interrupted while they are waited for.
    """
    if not nodes.endpoint:
        yield
        return
    process = _started(module_of(tracks), "lead", nodes, subprocess.PIPE)
    word = ""
    try:
        _meet(process, say)
        os.environ.update(nodes.environment())
        yield
        word = "end\n"
    except KeyboardInterrupt:
        raise Interrupted(None) from None
    finally:
        for name in nodes.environment():
            os.environ.pop(name, None)
        _dismiss(process, word)


def _meet(process: subprocess.Popen[str], say: Callable[[str], None]) -> None:
    for line in process.stdout or ():
        what, _, text = line.rstrip("\n").partition(" ")
        if what == "ready":
            return
        if what == "fail":
            raise ValueError(text)
        say(text)
    raise ValueError(f"the process that keeps the hosts together ended with {process.wait()}")


def _dismiss(process: subprocess.Popen[str], word: str) -> int:
    with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
        process.communicate(word, timeout=PATIENCE_S)
    if process.poll() is None:
        process.kill()
    return process.wait()


def follow(nodes: Nodes, tracks: Iterable[str], waiting: Callable[[], None]) -> int:
    """This host's part of a run that the first one measures; the exit status. Raises ValueError.

    Nothing else is measured here meanwhile; ``waiting`` is called where somebody is just doing that.
    """
    module = module_of(tracks)
    with _alone(nodes, waiting):
        process = _started(module, "follow", nodes, None)
        try:
            return process.wait()
        except KeyboardInterrupt:
            _dismiss(process, "")
            return 130


def _alone(nodes: Nodes, waiting: Callable[[], None]) -> AbstractContextManager[object]:
    """This host's measuring lock, unless the first host is this one and holds it."""
    return contextlib.nullcontext() if is_here(nodes.host) else measuring_alone(waiting)


def is_here(host: str) -> bool:
    """Whether a name or address is one of this host's own; one that nobody knows is not."""
    try:
        known = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    own = {address.address for card in psutil.net_if_addrs().values() for address in card}
    return any(address in own or address.startswith("127.") or address == "::1" for address in known)
