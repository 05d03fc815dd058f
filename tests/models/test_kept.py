"""Runs that contenders share: named by what decides them, made by one process at a time."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.models import _kept, _train_step
from archbench.models._kept import kept, name_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_name_follows_from_all_that_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    first = name_of(["case", 0], [], "cpu")
    assert first == name_of(["case", 0], [], "cpu")
    others = [name_of(["case", 1], [], "cpu"), name_of(["case", 0], [], "cuda"), name_of(["case", 0], [_kept], "cpu")]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    others.append(name_of(["case", 0], [], "cpu"))
    assert len({first, *others}) == 5


def test_the_code_of_the_training_loop_is_in_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    first, real = name_of([], [], "cpu"), _kept.inspect.getsource
    changed = lambda module: real(module) + " " * (module is _train_step)  # noqa: E731
    monkeypatch.setattr(_kept.inspect, "getsource", changed)
    assert name_of([], [], "cpu") != first


def _write(events: Any, go: Any) -> None:
    with kept("toy", "run") as path:
        events.put(path.exists())
        go.wait(60)
        path.write_text("made")


def test_another_process_waits_and_then_finds_it() -> None:
    spawn = multiprocessing.get_context("spawn")
    events, go = spawn.Queue(), spawn.Event()
    writers = [spawn.Process(target=_write, args=(events, go)) for _ in range(2)]
    for writer in writers:
        writer.start()
    first = events.get(timeout=60)
    assert events.empty()  # the other one is not in
    go.set()
    second = events.get(timeout=60)
    for writer in writers:
        writer.join(60)
    assert (first, second) == (False, True)
    assert [writer.exitcode for writer in writers] == [0, 0]
