"""Traces: one call of a cell, as TensorBoard's plugin opens it; and who leaves none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archbench.cells import Cell, Metric, Run, Status
from archbench.cli import measuring
from archbench.harness import front, trace
from archbench.harness.gate import Examiner
from archbench.harness.plan import Plan
from archbench.track import Call, Contender
from toy_track import TRACK, honest, measured

CASE = TRACK.test_cases[0]
COMMIT = "a" * 40


def examiner(work: Call) -> Examiner:
    return Examiner(TRACK, CASE, Contender(build=lambda case: work), work, "cpu", "honest")


def traces(folder: Path) -> list[Path]:
    return sorted(folder.rglob(f"*{trace.SUFFIX}"))


def test_a_call_in_torch_is_a_run_of_one_step_in_tensorboard(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="what is traced is torch's")
    data = pytest.importorskip("torch_tb_profiler.profiler.data", reason="TensorBoard's plugin is not installed")
    generator = pytest.importorskip("torch_tb_profiler.profiler.run_generator")
    calls = []

    def work(x: Any) -> Any:
        calls.append(x)
        return torch.relu(x @ x)

    with trace.asked_for(tmp_path):
        trace.leave(examiner(work), (torch.ones(64, 64),))
    (file,) = traces(tmp_path)
    assert file.parent == tmp_path / "toy" / CASE.slug / "honest"
    assert len(calls) == 2  # the profiler's own first step, and the one that is kept
    seen = data.RunProfileData.parse("cpu", None, str(file), str(tmp_path))
    profile = generator.RunGenerator("cpu", None, seen).generate_run_profile()
    assert seen.steps_names == ["1"]
    assert {view.display_name for view in profile.views} >= {"Overview", "Operator", "Trace", "Memory"}
    counted = {entry["name"]: entry["calls"] for entry in profile.operation_table_by_name["data"]}
    assert counted["aten::mm"] == counted["aten::relu"] == 1


def test_work_in_other_processes_writes_its_own(tmp_path: Path) -> None:
    asked: list[tuple[Path, Any]] = []

    class Elsewhere:
        def __call__(self, x: Any) -> Any:
            raise AssertionError("its ranks do the work")

        def trace(self, folder: Path, x: Any) -> None:
            assert folder.is_dir()
            asked.append((folder, x))

    with trace.asked_for(tmp_path):
        trace.leave(examiner(Elsewhere()), (1,))
    assert asked == [(tmp_path / "toy" / CASE.slug / "honest", 1)]


def test_nobody_asked(tmp_path: Path) -> None:
    with trace.asked_for(None):
        trace.leave(examiner(pytest.fail), ("traced",))
    with trace.asked_for(tmp_path):
        pass
    trace.leave(examiner(pytest.fail), ("traced, though nobody asks any more",))
    assert traces(tmp_path) == []


def test_a_call_beside_torch_leaves_no_trace(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is there, and the call does not use it")
    with trace.asked_for(tmp_path):
        trace.leave(examiner(honest), (1,))
    assert list(tmp_path.iterdir()) == []


def test_where_torch_is_not_imported_it_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with trace.asked_for(tmp_path):
        trace.leave(examiner(honest), (1,))
    assert list(tmp_path.iterdir()) == []


def cell(track: str, contender: str, status: Status = "ok") -> Cell:
    metrics = {"latency_s": Metric(1.0, "s"), "slowdown": Metric(1.0, "ratio")} if status == "ok" else {}
    return Cell(track=track, case="n10", contender=contender, baseline="honest", status=status, metrics=metrics)


def leaves(folder: Path, track: str, contender: str) -> None:
    own = trace.folder_of(folder, track, "n10", contender)
    own.mkdir(parents=True)
    (own / f"cpu.1{trace.SUFFIX}").touch()


def test_only_what_was_measured_can_miss_a_trace(tmp_path: Path) -> None:
    leaves(tmp_path, "toy", "traced")
    cells = [cell("toy", "traced"), cell("toy", "native"), cell("toy", "broken", "wrong"), cell("other", "native")]
    assert trace.missing(tmp_path, [*cells, cells[1]]) == {"toy": ["native"], "other": ["native"]}


def done(tmp_path: Path, asked: list[Path | None]) -> Callable[..., front.Outcome]:
    """In the place of a run: looks what it would hand on to its processes."""

    def run(*_: Any, **__: Any) -> front.Outcome:
        asked.append(Path(found) if (found := os.environ.get(trace.VARIABLE)) else None)
        leaves(tmp_path, "toy", "traced")
        header = Run(schema=1, run="r", machine="m", commit=COMMIT, dirty=False, started="2026-01-02")
        return front.Outcome(tmp_path / "r.jsonl", header, [cell("toy", "traced"), cell("toy", "native")])

    return run


@pytest.mark.parametrize("wanted", [True, False])
def test_the_run_hands_the_folder_on_and_says_once_who_left_none(
    wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Path | None] = []
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(front, "run", done(tmp_path, asked))
    monkeypatch.setattr("archbench.harness.plan.plan", lambda *_: Plan(cases={}, contenders={}))
    monkeypatch.setattr("archbench.hardware.preflight.preflight", lambda **_: [])
    said: list[str] = []
    monkeypatch.setattr(measuring, "_say", said.append)
    measuring.run([], trace=tmp_path if wanted else None)
    assert asked == [tmp_path if wanted else None]
    assert [line for line in said if "trace" in line] == ["no trace of toy: torch does nothing in native"] * wanted
    assert trace.VARIABLE not in os.environ
    assert "traced" in capsys.readouterr().out


def test_a_measured_cell_leaves_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="what is traced is torch's")
    with trace.asked_for(tmp_path):
        cell = measured(monkeypatch, lambda case: lambda x: (torch.from_numpy(x) * 2).numpy())
    assert cell.status == "ok"
    assert len(traces(tmp_path)) == 1
