"""What a run asks for, what it starts from and what it leaves, without asv and without timing anything."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from archbench.cells import Cell, Metric, Run, Started, encode
from archbench.discovery import load_track
from archbench.harness import asv_files, front
from archbench.harness.configuration import own_repository, parameters, results_dir
from archbench.harness.neighbours import crowding
from archbench.harness.processes import interruptible, own_session
from archbench.harness.repository import Repository
from archbench.track import Place

HERE = Place("cpu", 2, 8 << 30)
SMALL = "b1-h4-len128-d64-fp32-fwd"
COMMIT = "a" * 40
RUN = Run(schema=1, run="20260102T030405Z-abcdef", machine="pi5", commit=COMMIT, dirty=False, started="2026-01-02")


def cell(contender: str, case: str = SMALL) -> Cell:
    metrics = {"latency_s": Metric(1.0, "s"), "slowdown": Metric(1.0, "ratio")}
    return Cell(track="attention", case=case, contender=contender, baseline="torch_sdpa", status="ok", metrics=metrics)


def started(contender: str) -> Started:
    return Started(track="attention", case=SMALL, contender=contender, baseline="torch_sdpa")


def run_file(path: Path, *records: Run | Cell | Started, tail: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(encode(record) + b"\n" for record in records) + tail)
    return path


def test_a_case_whose_name_needs_quoting_is_refused() -> None:
    class Odd:
        slug = "b1 $(id)"

    track = load_track("attention")
    with pytest.raises(ValueError, match="small letters"):
        parameters(type("T", (), {"name": track.name, "bench_cases": (Odd(),)})())


def test_an_interrupted_file_keeps_its_cells_and_no_unfinished_mark(tmp_path: Path) -> None:
    file = run_file(tmp_path / "cells.jsonl", RUN, started("naive"), cell("naive"), started("fourier"), tail=b'{"rec')
    front.drop_unfinished(file)
    assert file.read_bytes() == run_file(tmp_path / "x", RUN, started("naive"), cell("naive")).read_bytes()
    front.drop_unfinished(tmp_path / "never-written")


def test_what_is_found_through_pythonpath_is_found_in_asvs_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASV_PYTHONPATH", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), "beside"]))
    found = front._environment(tmp_path, tmp_path / "cells.jsonl", "")["ASV_PYTHONPATH"]
    assert found.split(os.pathsep) == [str(tmp_path), os.path.abspath("beside")]  # asv works in other folders
    monkeypatch.setenv("ASV_PYTHONPATH", "/own")
    assert front._environment(tmp_path, tmp_path / "cells.jsonl", "")["ASV_PYTHONPATH"] == "/own"


def test_null_is_skipped_where_no_cell_stands_behind_it() -> None:
    ours, theirs = "attention.Attention.track_latency", "other.Suite.track_latency"
    params = [[f"'{SMALL}'", "'other'"], ["'naive'", "'fourier'"]]
    found = {
        "result_columns": ["result", "params"],
        "results": {ours: [[1.0, None, None, None], params], theirs: [[None, 1.0, 1.0, 1.0], params]},
    }
    asv_files.skip_unmeasured(found, {("attention", SMALL, "naive"), ("attention", "other", "naive")})
    values = found["results"][ours][0]
    assert values[0] == 1.0
    assert math.isnan(values[1])  # never asked for
    assert values[2] is None  # asked for, and it failed
    assert math.isnan(values[3])
    assert found["results"][theirs][0] == [None, 1.0, 1.0, 1.0]


def test_a_benchmark_without_any_value_is_skipped_too() -> None:
    name = "attention.Attention.track_latency"
    found = {"result_columns": ["result", "params"], "results": {name: [None, [[f"'{SMALL}'"], ["'naive'"]]]}}
    asv_files.skip_unmeasured(found, set())
    assert [math.isnan(value) for value in found["results"][name][0]] == [True]


def test_cells_of_a_commit_are_those_of_its_run_files(tmp_path: Path) -> None:
    run_file(tmp_path / "1.jsonl", RUN, cell("naive"))
    run_file(tmp_path / "2.jsonl", RUN, cell("fourier"))
    run_file(tmp_path / "3.jsonl", Run(**{**_fields(RUN), "commit": "b" * 40}), cell("torch_sdpa"))
    (tmp_path / "4.jsonl").write_bytes(b"\xff\xfe spoilt\n")
    assert asv_files.measured(tmp_path, COMMIT) == {("attention", SMALL, "naive"), ("attention", SMALL, "fourier")}


def _fields(run: Run) -> dict[str, object]:
    return {name: getattr(run, name) for name in run.__struct_fields__}


def test_a_configuration_may_have_comments_and_asvs_defaults(tmp_path: Path) -> None:
    configuration = tmp_path / "asv.conf.json"
    configuration.write_text('{"version": 1, "repo": ".", // here\n "branches": ["gone"]}')
    assert results_dir(configuration) == tmp_path / "results"
    (tmp_path / "private").mkdir()
    asv_files.prepare(tmp_path / "private", tmp_path / "results", "pi5", COMMIT, configuration)
    prepared = json.loads((tmp_path / "private" / "asv.conf.json").read_text())
    assert prepared["branches"] == ["HEAD"]
    assert prepared["version"] == 1


@pytest.mark.parametrize("text", ["[1, 2", "{}", "5", '{"version": 99, "repo": "."}'])
def test_a_configuration_asv_does_not_accept_is_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "asv.conf.json").write_text(text)
    with pytest.raises(ValueError, match=r"asv\.conf\.json is not a configuration asv accepts"):
        results_dir(tmp_path / "asv.conf.json")


def test_a_run_that_cannot_be_merged_is_kept_and_the_place_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    private, results = tmp_path / "private", tmp_path / "results"
    file = run_file(private / "cells.jsonl", RUN, cell("naive"))
    results.mkdir()
    (results / "pi5").write_text("a file where a folder should be")
    with pytest.raises(front.NotMerged, match="archbench merge") as caught:
        front._keep(private, file, results, "pi5")
    kept = Path(str(caught.value).rpartition(" ")[2])
    assert (kept / "pi5" / "cells" / f"{RUN.run}.jsonl").read_bytes() == file.read_bytes()


def test_nothing_of_a_session_outlives_it_and_the_lock_lives_as_long_as_it_does(tmp_path: Path) -> None:
    # The child leads a group of its own and loses its parent, as asv's fork server and our cells do.
    orphan = "import os, time; os.setpgid(0, 0); print(os.getpid(), flush=True); time.sleep(60)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {orphan!r}]); time.sleep(60)"
    log = tmp_path / "log"
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with own_session([sys.executable, "-c", code], os.environ, log, keep=[lock.fileno()]) as process:
            while not log.read_text().strip():
                time.sleep(0.05)
            orphaned = int(log.read_text())
            lock.close()  # as if we had been killed
            with (tmp_path / "lock").open() as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert process.returncode == -signal.SIGKILL
    assert not psutil.pid_exists(orphaned) or psutil.Process(orphaned).status() == psutil.STATUS_ZOMBIE
    with (tmp_path / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_interrupts_and_the_clean_up_is_left_alone(ending: signal.Signals) -> None:
    before = signal.getsignal(ending)
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), ending)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(ending) is before


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "known.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    return Repository.containing(tmp_path)


@pytest.mark.parametrize(
    ("path", "dirty"),
    [
        ("kernels/attention/mine.py", True),
        ("kernels/norm/mine.cu", True),
        ("hardware/profiles/mine.toml", True),
        ("kernels/known.py", True),
        ("reports/results/pi5/cells/x.py", False),
        ("docs/notes.py", False),
        ("kernels/notes.txt", False),
    ],
)
def test_a_row_is_dirty_when_code_is_not_the_commits(path: str, dirty: bool, repository: Repository) -> None:
    assert not repository.is_dirty()
    (repository.top / path).parent.mkdir(parents=True, exist_ok=True)
    (repository.top / path).write_text("changed")
    assert repository.is_dirty() is dirty


def test_a_staged_new_file_and_a_deleted_one_are_dirty(repository: Repository) -> None:
    (repository.top / "kernels" / "known.py").rename(repository.top / "kernels" / "renamed.py")
    assert repository.is_dirty()
    subprocess.run(["git", "-C", str(repository.top), "add", "-A"], check=True)
    assert repository.is_dirty()


def test_code_of_another_checkout_is_refused(repository: Repository) -> None:
    with pytest.raises(ValueError, match="would name a commit that was not measured"):
        own_repository(repository.top / "asv.conf.json")
    root = Path(__file__).resolve().parents[2]
    assert own_repository(root / "asv.conf.json").top == root


@pytest.mark.parametrize(
    ("threads", "other", "said"),
    [(2, 0.05, False), (2, 0.3, True), (1, 0.5, False), (1, 0.7, True)],
)
def test_neighbours_matter_where_cores_are_short(threads: int, other: float, said: bool) -> None:
    host = {"threads": threads, "other_cpu_fraction": other}
    assert bool(crowding(host, HERE, cores=2)) is said
    assert crowding(host, Place("cuda", 2, 1 << 30), cores=2) == ""


def test_the_reader_is_told_how_much_neighbours_used() -> None:
    reason = crowding({"threads": 2, "other_cpu_fraction": 0.305}, HERE, cores=2)
    assert reason == "other processes used 30% of the machine's cores while it was measured"
