"""asv's traps, each with its guard: what is discovered, what is returned, what is stored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from archbench.cells import Cell, Duel, Metric, encode
from archbench.discovery import contender_modules, load_track, track_modules
from archbench.harness import suite as suites
from archbench.harness.isolate import Died
from archbench.harness.session import Session, append
from archbench.harness.suite import Suite

ROOT = Path(__file__).resolve().parent.parent
CASE = "b1-h4-len128-d64-fp32-fwd"


@pytest.fixture(scope="module")
def discovered(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What asv itself finds in ``benchmarks/``."""
    target = tmp_path_factory.mktemp("asv") / "found.json"
    code = f"from asv_runner.discovery import _discover; _discover(({str(ROOT / 'benchmarks')!r}, {str(target)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    return list(json.loads(target.read_text()))


def test_asv_discovers_exactly_the_metrics_of_each_track(discovered: list[dict[str, object]]) -> None:
    expected = {
        f"{track}.{track.title().replace('_', '')}.{metric}"
        for track in track_modules()
        for metric in (
            "track_latency",
            "track_peak_bytes",
            "track_slowdown",
            *(["track_quality"] if load_track(track).quality else []),
        )
    }
    assert {str(found["name"]) for found in discovered} == expected


def test_what_asv_stores_of_a_suite_is_the_tracks(discovered: list[dict[str, object]]) -> None:
    for found in discovered:
        track = load_track(str(found["name"]).partition(".")[0])
        assert found["version"] == track.version
        assert found["param_names"] == ["case", "contender"]
        assert found["params"] == [
            [repr(case.slug) for case in track.bench_cases],
            [repr(name) for name in contender_modules(track.name)],
        ]
        assert found["type"] == "track"
        assert found["unit"] in ("s", "ratio", "B")
        assert float(str(found["timeout"])) > track.timing.deadline_s


def test_importing_the_suites_imports_no_torch() -> None:
    code = "import sys, benchmarks.attention; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_suite_without_a_track_is_refused() -> None:
    with pytest.raises(TypeError, match="name of a track"):
        type("Nameless", (Suite,), {})


class Prepared(Suite):
    track = "attention"


@pytest.fixture
def session(tmp_path: Path) -> Session:
    run = suites.decode(
        b'{"record":"run","schema":1,"run":"r","machine":"m","commit":"c","dirty":false,"started":"2026-01-01T00:00:00+00:00"}'
    )
    return Session(str(tmp_path / "run.jsonl"), run, "cpu", 1, 1 << 34, 0, str(tmp_path))  # type: ignore[arg-type]


def ok_cell() -> Cell:
    return Cell(
        track="attention",
        case=CASE,
        contender="naive",
        baseline="torch_sdpa",
        status="ok",
        metrics={"latency_s": Metric(2.0, "s"), "slowdown": Metric(2.0, "ratio"), "peak_bytes": Metric(8.0, "B")},
        duel=Duel([2.0, 2.0], [1.0, 1.0], [1.0, 1.0]),
    )


def prepared(session: Session, answer: bytes | Died, monkeypatch: pytest.MonkeyPatch) -> Suite:
    asked = []

    def isolated(work: object, deadline_s: float) -> bytes | Died:
        asked.append(deadline_s)
        return answer

    monkeypatch.setattr(suites, "run_isolated", isolated)
    Path(session.path).touch()
    suite = Prepared()
    for _ in range(3):  # asv sets up once per metric; the cell is measured once
        suite.setup(session, CASE, "naive")
    assert len(asked) == 1
    return suite


def test_metrics_are_floats_or_samples_and_nothing_else(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = prepared(session, encode(ok_cell()), monkeypatch)
    for metric, samples in (("latency", [2.0, 2.0]), ("slowdown", [2.0, 2.0]), ("peak_bytes", [8.0])):
        assert getattr(suite, f"track_{metric}")(session, CASE, "naive") == {"samples": samples, "number": 1}


def test_a_dead_child_is_a_failure_with_a_record(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = prepared(session, Died("crashed", "killed by SIGSEGV"), monkeypatch)
    with pytest.raises(RuntimeError, match="crashed: killed by SIGSEGV"):
        suite.track_latency(session, CASE, "naive")
    lines = Path(session.path).read_bytes().splitlines()
    assert [json.loads(line)["record"] for line in lines] == ["track", "started", "cell"]


def test_unsupported_is_asvs_not_available(session: Session) -> None:
    cell = Cell(
        track="attention",
        case=CASE,
        contender="sdpa_cudnn",
        baseline="torch_sdpa",
        status="unsupported",
        reason="needs CUDA",
    )
    append(Path(session.path), cell)
    with pytest.raises(NotImplementedError, match="needs CUDA"):
        Prepared().setup(session, CASE, "sdpa_cudnn")


def test_a_case_for_other_machines_is_not_available_and_leaves_no_record(session: Session) -> None:
    track = load_track("attention")
    elsewhere = next(case.slug for case in track.bench_cases if track.skip(case, session.bench().place))
    with pytest.raises(NotImplementedError):
        Prepared().setup(session, elsewhere, "naive")
    assert not Path(session.path).exists()
