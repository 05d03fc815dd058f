"""Ranks that die, hang, raise or never come: who is named, and that nothing is left."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

pytest.importorskip("torch")

from archbench.harness.isolate import Died, run_isolated
from archbench.models.parallel import TRACK
from archbench.models.parallel._launch.group import HELD, OLD_S, PREFIX, Group, pids, sweep
from archbench.models.parallel._launch.ranks import Ranks
from archbench.nodes import Nodes
from archbench.track import Failed

CASE = TRACK.test_cases[0]
TOKENS = TRACK.make_inputs(CASE, 1, "cpu")[0]
HERE = Path(__file__).parent
GONE_S = 10.0


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which groups of ranks work. In the end neither a file is left there nor a process that knows it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    yield tmp_path
    until = time.monotonic() + GONE_S
    while left(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)
    assert left(tmp_path) == []


def left(scratch: Path) -> list[str]:
    found = [str(path) for path in scratch.glob(f"{PREFIX}*")]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        found += [" ".join(words)] * any(str(scratch) in word for word in words)
    return found


def ranks(order: str, monkeypatch: pytest.MonkeyPatch, size: int = 2) -> Ranks:
    monkeypatch.setenv("ARCHBENCH_TEST_ORDER", order)
    return Ranks("wayward", CASE, size)


def test_a_driver_busy_with_its_reference_notices_a_rank_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    from archbench.models.parallel._gate import reference

    group = ranks("", monkeypatch)
    os.kill(pids(group._group.folder)[1], signal.SIGKILL)
    group._group.launcher.wait(GONE_S)
    reference.cache_clear()
    with pytest.raises(Failed, match="rank 1 was killed by SIGKILL"):
        reference(CASE, TOKENS.tobytes())
    reference(CASE, TOKENS.tobytes())  # it is said once: the group is closed
    group.close()


def ask_for_ever(group: Ranks) -> NoReturn:
    while True:
        group.ask("train", TOKENS)


@pytest.mark.parametrize("seed", range(3))
def test_a_rank_that_is_killed_is_the_one_that_is_named(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At random moments of random calls; ``tests/parallel_faults.py`` does it to a run that measures."""
    chance = random.Random(seed)
    group = ranks("", monkeypatch)
    victim = chance.randrange(2)
    threading.Timer(chance.uniform(0, 0.5), os.kill, (pids(group._group.folder)[victim], signal.SIGKILL)).start()
    began = time.monotonic()
    with pytest.raises(Failed, match=rf"^rank {victim} was killed by SIGKILL") as failed:
        ask_for_ever(group)
    assert failed.value.status == "crashed"
    assert time.monotonic() - began < 30  # not a measurement: what the reader of a run was promised


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ("raise:1", r"^rank 1 ended with 1: ValueError: this rank does not like the batch; .*about to do as ordered"),
        ("exit:1", r"^rank 1 ended with 0; its last lines: about to do as ordered"),
    ],
)
def test_a_rank_that_leaves_is_named_though_the_others_fail_too(
    order: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = ranks(order, monkeypatch)
    with pytest.raises(Failed, match=says) as failed:
        group.ask("train", TOKENS)
    assert failed.value.status == "crashed"


def test_a_rank_that_sleeps_is_told_from_the_one_that_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    group = ranks("sleep:1", monkeypatch)
    with pytest.raises(
        Failed, match=r"^no answer within 2 s: rank 1 did not go on \(rank 1: is in step \(wayward.py"
    ) as failed:
        group.ask("train", TOKENS, within_s=2)
    assert failed.value.status == "timeout"


def test_a_rank_that_is_stopped_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    group = ranks("", monkeypatch)
    os.kill(pids(group._group.folder)[0], signal.SIGSTOP)
    with pytest.raises(Failed, match=r"^no answer within 1 s: rank 0 did not go on \(rank 0: stopped") as failed:
        group.ask("train", TOKENS, within_s=1)
    assert failed.value.status == "timeout"


def test_memory_that_runs_out_is_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    group = ranks("memory:0", monkeypatch, size=1)
    with pytest.raises(Failed, match=r"^rank 0 ended with 1: MemoryError") as failed:
        group.ask("train", TOKENS)
    assert failed.value.status == "oom"


def test_a_contender_without_a_trainer_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failed, match="wayward defines no trainer"):
        ranks("no trainer", monkeypatch, size=1)


@pytest.mark.parametrize("victim", ["rank", "launcher"])
def test_one_that_is_killed_before_there_is_a_group(
    victim: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strike() -> bytes:
        """In a process of its own, because the one that starts ranks waits for them."""
        word = "_launch.worker" if victim == "rank" else "_launch.launcher"
        until = time.monotonic() + 60
        while time.monotonic() < until and not (
            found := [one for one in psutil.process_iter(["cmdline"]) if _is(one, word, scratch)]
        ):
            time.sleep(0.01)
        found[0].kill()
        return b"done"

    child = os.fork()
    if child == 0:
        strike()
        os._exit(0)
    says = "^rank [01] was killed by SIGKILL" if victim == "rank" else "^the launcher was killed by SIGKILL"
    with pytest.raises(Failed, match=says):
        ranks("", monkeypatch)
    os.waitpid(child, 0)


def _is(process: psutil.Process, word: str, scratch: Path) -> bool:
    line = " ".join(process.info["cmdline"] or [])
    return word in line and str(scratch) in line


DRIVER = """
import sys, time
from archbench.models.parallel import TRACK
from archbench.models.parallel._launch.ranks import Ranks
group = Ranks("wayward", TRACK.test_cases[0], 1)
print("ready", flush=True)
time.sleep(600)
"""


def test_nothing_outlives_the_driver() -> None:
    """What is left is looked at by ``scratch``."""
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        driver.kill()


def test_a_cell_that_takes_too_long_leaves_no_ranks(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its launcher is killed with it. The folder, of some kilobytes, is left to the next group of ranks."""

    def work() -> bytes:
        group = ranks("sleep:0", monkeypatch, size=1)
        group.ask("train", TOKENS)
        return b"never"

    assert run_isolated(work, 6.0) == Died("timeout", "no result within 6 s")
    for folder in scratch.glob(f"{PREFIX}*"):
        age(folder)
    sweep(scratch)


def age(folder: Path) -> None:
    old = time.time() - 2 * OLD_S
    os.utime(folder / HELD, (old, old))


def test_a_folder_that_nobody_holds_goes_away(scratch: Path) -> None:
    group = Group({"size": 1}, Nodes())
    held = group.folder
    age(held)
    left_behind, new = scratch / f"{PREFIX}1", scratch / f"{PREFIX}2"
    for folder in (left_behind, new):
        folder.mkdir()
        (folder / HELD).touch()
    age(left_behind)
    sweep(scratch)
    assert (held.exists(), left_behind.exists(), new.exists()) == (True, False, True)
    group.end()
    assert not held.exists()
    shutil.rmtree(new)
