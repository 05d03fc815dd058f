"""A group of ranks that nothing happens to, and groups that cannot be."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

pytest.importorskip("torch")

from archbench.hardware.gpu import Gpus
from archbench.models.parallel import TRACK
from archbench.models.parallel._launch import ranks as module
from archbench.models.parallel._launch.group import pids
from archbench.models.parallel._launch.ranks import Ranks
from archbench.nodes import Nodes
from archbench.track import Unavailable

CASE = TRACK.test_cases[0]
CONTENDER = "archbench.models.parallel.ddp"


def test_ranks_answer_until_they_are_closed_and_leave_nothing() -> None:
    group = Ranks(CONTENDER, CASE, 2)
    tokens = TRACK.make_inputs(CASE, 3, "cpu")
    first, again = group.ask("train", *tokens), group.ask("train", *tokens)
    assert (first["losses"] == again["losses"]).all()  # a call begins anew
    folder: Path = group._group.folder
    launcher = group._group.launcher
    assert os.getsid(launcher.pid) == os.getsid(0)  # by which a run finds it
    assert os.getpgid(launcher.pid) != os.getpgid(0)  # Ctrl-C is not for it
    members = [launcher.pid, *pids(folder).values()]
    assert len(members) == 3
    group.close()
    assert launcher.returncode == 0
    assert not folder.exists()
    assert [pid for pid in members if psutil.pid_exists(pid)] == []


def test_a_temporary_folder_may_have_a_long_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the path of a socket may be."""
    long = tmp_path / ("a" * 110)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    group = Ranks("archbench.models.parallel.single", CASE, 1)
    assert len(group.ask("train", *TRACK.make_inputs(CASE, 3, "cpu"))["losses"]) == CASE.steps
    group.close()
    assert list(long.iterdir()) == []


def test_ranks_that_cannot_be_started_leave_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "Listener", full)
    with pytest.raises(OSError, match="No space left"):
        Ranks(CONTENDER, CASE, 2)
    assert list(tmp_path.iterdir()) == []


def test_more_ranks_than_gpus_are_refused_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "detect_gpus", lambda: Gpus((), "no NVIDIA GPU"))
    with pytest.raises(Unavailable, match=r"^needs 2 GPUs, here: none \(no NVIDIA GPU\)$"):
        Ranks(CONTENDER, replace(CASE, backend="nccl"), 2)


def test_ranks_that_cannot_be_spread_are_refused() -> None:
    with pytest.raises(Unavailable, match="3 ranks cannot be spread over 2 nodes"):
        Ranks(CONTENDER, CASE, 3, Nodes(2, 0, "localhost:29400"))
