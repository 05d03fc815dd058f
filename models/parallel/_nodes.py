"""The hosts of one run: the first keeps the store they meet at, the others start their part of every group of ranks.

``lead`` runs beside ``archbench run`` on the first host, ``follow`` is what it does on the others. Each ends when its
standard input ends: whoever started it is gone then. The leader takes the port for itself before anything is measured.
torchrun does not: where the port is taken, it takes whatever listens there for its store, and waits.

Source: https://docs.pytorch.org/docs/stable/elastic/rendezvous.html
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from typing import Any

import psutil
from torch.distributed import Store

from archbench.models.parallel._launch import board as _board
from archbench.models.parallel._launch.group import Group
from archbench.nodes import Nodes
from archbench.reasons import first_line

COMING_S = 600.0  # until every host is there
SILENCE_S = 60.0  # without a word from the first host, which answers at once
ENDING_S = 5.0  # for the others to hear of the end
LOOK_S = 0.2
CUT_OFF = "the run on the first host was cut off"


class Ended(Exception):
    """Nothing more to do; the message says why, where that was not the plan."""


def lead(nodes: Nodes) -> None:
    """Keep the store until the run is over. Raises Ended."""
    try:
        store = _board.connected(nodes, SILENCE_S, keep=True)
    except RuntimeError as error:
        taken = "EADDRINUSE" in str(error) or "in use" in str(error)
        raise Ended(
            f"port {nodes.port} is already in use here: name a free one with --rdzv-endpoint"
            if taken
            else f"cannot be met at {nodes.endpoint}: {first_line(error)}"
        ) from error
    store.set("about", json.dumps(_board.about()))
    _await_followers(store, nodes)
    _tell("ready")
    alive: set[int] = set()
    seen = 0
    while (word := _heard(LOOK_S)) is None:
        while (spec := _board.published(store, seen + 1)) is not None:
            seen += 1
            if _lives(spec["launcher"]):
                alive.add(seen)
            else:
                _over(store, seen)
        for number in list(alive):
            spec = _board.published(store, number)
            if spec and not _lives(spec["launcher"]):
                alive.discard(number)
                _over(store, number)
    store.set("end", word)
    until = time.monotonic() + ENDING_S
    while time.monotonic() < until and not all(store.check([f"bye/{node}"]) for node in range(1, nodes.count)):
        time.sleep(LOOK_S / 2)


def _await_followers(store: Store, nodes: Nodes) -> None:
    until = time.monotonic() + COMING_S
    said = ""
    while missing := [node for node in range(1, nodes.count) if not store.check([f"here/{node}"])]:
        if store.check(["refused"]):
            raise Ended(store.get("refused").decode())
        if time.monotonic() > until:
            raise Ended(f"node {missing[0]} did not come within {COMING_S:.0f} s")
        waiting = f"waiting for node {' and '.join(map(str, missing))} at {nodes.endpoint}"
        if waiting != said:
            _tell(f"say {waiting}")
        said = waiting
        if _heard(LOOK_S) is not None:
            raise Ended("interrupted")


def _over(store: Store, number: int) -> None:
    _board.Group(store, number, 1).finish()


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _heard(within_s: float) -> str | None:
    """A word on standard input: "end" where the run is whole; a cut-off one ends without. None: not yet."""
    if not select.select([sys.stdin], [], [], within_s)[0]:
        return None
    return "end" if sys.stdin.readline().strip() == "end" else CUT_OFF


def _tell(word: str) -> None:
    print(word, flush=True)


class Follower:
    """A host that starts its part of every group."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.groups: dict[int, Group] = {}
        self.followed = 0
        self.heard_s = time.monotonic()

    def follow(self) -> None:
        """Until the first host is done. Raises Ended."""
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            store = self._met()
            while True:
                self._look(store)
                if store.check(["end"]):
                    store.set(f"bye/{self.nodes.rank}", "1")
                    if (word := store.get("end").decode()) != "end":
                        raise Ended(word)
                    return
                self.heard_s = time.monotonic()
                time.sleep(LOOK_S)
        except RuntimeError as error:
            raise Ended(f"the first host at {self.nodes.endpoint} is gone: {first_line(error)}") from error
        finally:
            for group in self.groups.values():
                group.end()

    def _met(self) -> Store:
        self.heard_s += COMING_S - SILENCE_S
        store = _board.connected(self.nodes, COMING_S)
        store.wait(["about"])
        if differ := _board.differences(_board.about(), json.loads(store.get("about"))):
            store.set("refused", f"node {self.nodes.rank} is not the same: {differ}")
            raise Ended(f"the hosts differ: {differ}")
        store.set(f"here/{self.nodes.rank}", "1")
        self.heard_s = time.monotonic()
        _tell(f"following {self.nodes.endpoint} as node {self.nodes.rank}")
        return store

    def _look(self, store: Store) -> None:
        """Start what is new, end what is over, tell what failed."""
        while (spec := _board.published(store, self.followed + 1)) is not None:
            self.followed += 1
            if not _board.Group(store, self.followed, self.nodes.count).is_over():
                self.groups[self.followed] = self._started(spec)
        for number, group in list(self.groups.items()):
            known = _board.Group(store, number, self.nodes.count)
            ended = group.launcher.poll() is not None
            if ended and group.launcher.returncode and not known.is_over():
                known.fail(group.cause())
            if ended or known.is_over():
                group.end()
                del self.groups[number]

    def _started(self, spec: dict[str, Any]) -> Group:
        group = Group(spec, self.nodes)
        group.start()
        return group

    def _watch(self) -> None:
        """A thread's work: a store that neither answers nor fails holds the one who asks for ever."""
        while time.monotonic() - self.heard_s < SILENCE_S:
            if _heard(LOOK_S) is not None:
                self._leave("interrupted", 130)
        self._leave(f"no word from the first host at {self.nodes.endpoint}", 1)

    def _leave(self, why: str, code: int) -> None:
        for group in list(self.groups.values()):
            group.end()
        print(f"archbench: {why}", file=sys.stderr, flush=True)
        os._exit(code)


def main() -> int:
    nodes = Nodes.told()
    try:
        if sys.argv[1] == "lead":
            lead(nodes)
        else:
            follower = Follower(nodes)
            follower.follow()
            _tell(f"followed {follower.followed} groups of ranks; the rows are on the first host")
    except Ended as ended:
        if sys.argv[1] == "lead":
            _tell(f"fail {ended}")
        else:
            print(f"archbench: {ended}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
