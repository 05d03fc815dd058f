"""A run on a machine that is not ready: refused in words, or made all the same and marked as that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from archbench.cells import ContenderNote, Run
from archbench.cli.console import app
from archbench.discovery import Loaded
from archbench.hardware import preflight as module
from archbench.hardware.preflight import Obstacle
from archbench.harness import front, measure, session
from archbench.track import Contender
from toy_track import PLACE, TRACK, ToyCase, honest

FOUND = [
    Obstacle("heat", "72 °C before the run", "let it cool"),
    Obstacle("governor", "the cores run under ondemand", "echo performance"),
]
IN_A_ROW = "heat: 72 °C before the run; governor: the cores run under ondemand"


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """``archbench run`` in a folder with a configuration, up to where it would start asv."""
    with_what: dict[str, Any] = {}

    def run(*_: Any, **options: Any) -> Any:
        with_what.update(options)
        raise front.RunFailed("it began")

    monkeypatch.setattr(front, "run", run)
    (tmp_path / "asv.conf.json").write_text(json.dumps({"version": 1, "repo": ".", "results_dir": "here"}))
    monkeypatch.chdir(tmp_path)
    return with_what


def stands_in_the_way(monkeypatch: pytest.MonkeyPatch, found: list[Obstacle]) -> list[Sequence[Path]]:
    asked: list[Sequence[Path]] = []

    def look(*, folders: Sequence[Path]) -> list[Obstacle]:
        asked.append(folders)
        return found

    monkeypatch.setattr(module, "preflight", look)
    return asked


def test_a_machine_that_is_not_ready_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, begun: dict[str, Any], tmp_path: Path
) -> None:
    asked = stands_in_the_way(monkeypatch, FOUND)
    done = CliRunner().invoke(app, ["run", "attention/naive"])
    assert done.exit_code == 2
    assert begun == {}
    assert asked == [[tmp_path / "here"]]
    for sentence in (*map(str, FOUND), "--force measures all the same"):
        assert sentence in done.output


def test_force_measures_all_the_same_and_hands_on_why_not(
    monkeypatch: pytest.MonkeyPatch, begun: dict[str, Any], tmp_path: Path
) -> None:
    asked = stands_in_the_way(monkeypatch, FOUND)
    done = CliRunner().invoke(app, ["run", "attention/naive", "--force", "--keep-in", "kept", "--into", "there"])
    assert "it began" in done.output
    assert begun["forced"] == IN_A_ROW
    assert asked == [[tmp_path / "there", tmp_path / "kept"]]
    assert str(FOUND[0]) in done.output


@pytest.mark.parametrize("options", [[], ["--force"]])
def test_a_machine_that_is_ready_is_measured_and_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, begun: dict[str, Any], options: list[str]
) -> None:
    stands_in_the_way(monkeypatch, [])
    done = CliRunner().invoke(app, ["run", "attention/naive", *options])
    assert "it began" in done.output
    assert begun["forced"] == ""


def test_a_run_knows_from_its_environment_and_asv_alone_looks_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "preflight", lambda folders: FOUND)
    monkeypatch.delenv(session.FORCED, raising=False)
    assert session._overruled(tmp_path) == IN_A_ROW
    for seen in ("", "clock: late"):
        monkeypatch.setenv(session.FORCED, front._environment(tmp_path, tmp_path / "cells.jsonl", seen)[session.FORCED])
        assert session._overruled(tmp_path) == seen


@pytest.mark.parametrize("forced", [IN_A_ROW, ""])
def test_every_row_says_what_was_overruled(monkeypatch: pytest.MonkeyPatch, forced: str) -> None:
    loaded = Loaded("toy", "honest", "toy", Contender(build=lambda case: honest), "ok", "", ContenderNote())
    monkeypatch.setattr(measure, "load_contender", lambda track, contender: loaded)
    monkeypatch.setattr(measure, "wait_for_quiet", lambda: None)
    run = Run(schema=1, run="20260102T030405Z-abcdef", machine="pi5", commit="a" * 40, dirty=False, started="")
    opened = session.Session("", run, "cpu", PLACE.cores, PLACE.memory_bytes, 0, "", forced=forced)
    cell = measure.measure_cell(TRACK, ToyCase(), "honest", opened.bench())
    assert cell.status == "ok", cell.reason
    assert cell.host.get("forced", "") == forced


def test_a_row_that_has_no_number_says_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Loaded("toy", "honest", "toy", Contender(build=lambda case: np.sin), "ok", "", ContenderNote())
    monkeypatch.setattr(measure, "load_contender", lambda track, contender: loaded)
    cell = measure.measure_cell(TRACK, ToyCase(), "honest", measure.Bench(PLACE, forced=IN_A_ROW))
    assert (cell.status, cell.host["forced"]) == ("wrong", IN_A_ROW)
