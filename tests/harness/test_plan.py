"""Which cells a run asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from archbench.discovery import UnknownName, load_track, track_modules
from archbench.harness.plan import CELL_S, Plan, fitted, plan
from archbench.track import Place

HERE = Place("cpu", 2, 8 << 30)
SMALL = "b1-h4-len128-d64-fp32-fwd"


def elsewhere() -> str:
    track = load_track("attention")
    return next(case.slug for case in track.bench_cases if track.skip(case, HERE) is not None)


def test_a_case_asked_for_twice_is_measured_once() -> None:
    wanted = plan(("attention/naive",), (SMALL, SMALL), HERE)
    assert wanted.total == 1
    assert wanted.left_out == ()


def test_a_case_for_other_machines_is_left_out_and_said_so() -> None:
    wanted = plan(("attention/naive",), (SMALL, elsewhere()), HERE)
    assert wanted.cases == {"attention": (SMALL,)}
    (sentence,) = wanted.left_out
    assert sentence.startswith(f"case {elsewhere()}: ")


def test_nothing_to_measure_is_a_mistake_with_its_reason() -> None:
    with pytest.raises(ValueError, match=f"nothing to measure here: case {elsewhere()}: "):
        plan(("attention",), (elsewhere(),), HERE)
    with pytest.raises(UnknownName, match="did you mean"):
        plan(("attention",), (SMALL + "x",), HERE)


def test_a_contender_whose_name_needs_quoting_is_never_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archbench.harness.plan.select", lambda targets: {"attention": ("naive", "zz a'b", "zz;id")})
    wanted = plan((), (SMALL,), HERE)
    assert wanted.contenders == {"attention": ("naive",)}
    assert [sentence.partition(": ")[0] for sentence in wanted.left_out] == ["attention/zz a'b", "attention/zz;id"]


def test_a_study_is_measured_where_it_is_named() -> None:
    studies = [name for name in track_modules() if load_track(name).on_request]
    whole = plan((), (), HERE)
    for study in studies:
        assert study not in whole.cases
        assert any(sentence.startswith(f"{study}: takes ") for sentence in whole.left_out)
        if study != "edge_llm":  # its files may be missing: see below
            assert study in plan((study,), (), HERE).cases


def test_why_cases_of_a_track_that_was_named_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHBENCH_EDGE", str(tmp_path))
    with pytest.raises(ValueError, match=r"edge_llm: \d+ cases: .*archbench edge build smollm2_135m"):
        plan(("edge_llm",), (), HERE)
    gpu = plan(("attention/naive",), (), HERE)
    assert any(sentence.startswith("attention: ") for sentence in gpu.left_out)
    assert "attention" in gpu.cases


def test_minutes_are_not_for_a_track_that_takes_more() -> None:
    study = next(name for name in track_modules() if load_track(name).on_request)
    with pytest.raises(ValueError, match="no few minutes are enough"):
        plan((study,), (), HERE, 8.0)


WHOLE = Plan({"one": ("a", "b", "c"), "two": ("d", "e")}, {"one": ("x", "y"), "two": ("z",)})


def test_every_track_keeps_its_first_case_in_no_time_at_all() -> None:
    kept = fitted(WHOLE, 0)
    assert kept.cases == {"one": ("a",), "two": ("d",)}
    assert kept.left_out == (
        "one: 2 of 3 cases, for want of time; archbench run one measures all",
        "two: 1 of 2 cases, for want of time; archbench run two measures all",
    )


def test_tracks_get_their_second_cases_before_one_gets_its_third() -> None:
    kept = fitted(WHOLE, 6 * CELL_S / 60)
    assert kept.cases == {"one": ("a", "b"), "two": ("d", "e")}
    assert kept.total == 6


def test_a_plan_that_fits_is_whole() -> None:
    assert fitted(WHOLE, 8 * CELL_S / 60) == WHOLE
