"""Searches of a contender: with trials that are computed, for what can go wrong; with real ranks, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="no torch installed")

from archbench.models.largest_batch import MIB, TRACK, LargestBatchCase
from archbench.models.largest_batch import _trials as trials
from archbench.models.largest_batch import _workload as workload
from archbench.models.largest_batch._journal import folder
from archbench.models.largest_batch._trials import Trial, data_peak_bytes, empty_bytes
from archbench.models.largest_batch._workload import Searching, searched
from archbench.models.parallel import ParallelCase
from archbench.track import Failed, Place, Unavailable

CASE = LargestBatchCase(ParallelCase(layers=2, dim=32, length=15, batch=16), cap_mib=1000, seeds=2)
EMPTY, FIXED, SEQUENCE = 300 * MIB, 400 * MIB, 8 * MIB  # 75 sequences fit: 72 in steps of 4
REAL = LargestBatchCase(
    ParallelCase(layers=1, dim=64, length=256, batch=8, micro_batches=2), cap_mib=1, step=8, seeds=1
)
ROOM = 64  # MiB of the real search, above what a rank takes without a model
CUT_OFF = """
import time
from archbench.models.largest_batch import _workload
from test_searches import CASE, Computed, a_search
class Slow(Computed):
    def __call__(self, *asked):
        print(asked[1].batch, flush=True)
        time.sleep(0.0 if len(self.asked) < 2 else 60.0)
        return super().__call__(*asked)
_workload.trial, _workload.empty_bytes = Slow(), lambda *_: 0
a_search(CASE).run(0, "cpu")
"""


class Computed:
    """Trials of a straight line, as ``trial`` makes them; remembers the batches."""

    def __init__(self) -> None:
        self.sequence, self.bend, self.least = SEQUENCE, 0.0, 0
        self.asked: list[int] = []

    def __call__(self, module: str, case: ParallelCase, size: int, cap_bytes: int, seed: int) -> Trial:
        self.asked.append(case.batch)
        peak = FIXED + max(self.least, self.sequence * case.batch + int(self.bend * case.batch**2))
        return Trial(case.batch, True, peak) if peak <= cap_bytes else Trial(case.batch, False, reason="out of memory")


def a_search(case: LargestBatchCase = CASE, cut: Any = "ranks") -> Searching:
    return Searching("archbench.models.parallel.ddp", cut, case, SimpleNamespace(ranks=SimpleNamespace(size=2)))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Computed:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = Computed()
    monkeypatch.setattr(workload, "trial", found)
    monkeypatch.setattr(workload, "empty_bytes", lambda *_: EMPTY)
    return found


def test_a_search_finds_the_edge_from_two_small_trials_and_tells_the_line(computed: Computed) -> None:
    found = a_search().run(0, "cpu")
    assert computed.asked == [16, 32, 72, 76]
    assert found.metrics == pytest.approx(
        {
            "cap_share_per_sequence": 1 / 72,
            "largest_batch": 72,
            "largest_micro_batch": 36,
            "empty_bytes": EMPTY,
            "trials": 4,
            "search_s": found.metrics["search_s"],
            "peak_bytes": FIXED + 16 * SEQUENCE,
            "sequence_bytes": SEQUENCE,
            "fixed_bytes": FIXED,
        }
    )
    assert [batch for batch, _ in found.curves["peak_bytes_over_batch"]] == [16, 32, 72]


@pytest.mark.parametrize(("cut", "pieces"), [("ranks", 2), ("micro_batches", 4), ("nothing", 1)])
def test_a_micro_batch_is_what_goes_through_the_model_at_once(computed: Computed, cut: str, pieces: int) -> None:
    assert a_search(cut=cut).run(0, "cpu").metrics["largest_micro_batch"] == 72 / pieces


@pytest.mark.parametrize(("sequence", "bend"), [(8, 0.02), (8, -0.02), (20, 0.0), (40, 0.0), (120, 0.0), (1, 0.0)])
def test_whatever_the_line_says_the_end_was_tried(computed: Computed, sequence: int, bend: float) -> None:
    computed.sequence, computed.bend = sequence * MIB, bend * MIB
    end = int(a_search().run(0, "cpu").metrics["largest_batch"])
    assert {end, end + CASE.step} <= set(computed.asked)
    peaks = [FIXED + (sequence + bend * batch) * MIB * batch for batch in (end, end + CASE.step)]
    assert peaks[0] <= CASE.cap_bytes < peaks[1]


def test_a_line_that_points_far_is_tried_out_before_it_is_followed(computed: Computed) -> None:
    computed.sequence, computed.least = 2 * MIB, 100 * MIB  # flat up to 50: the optimizer's moment is the highest
    assert a_search().run(0, "cpu").metrics["largest_batch"] == 300
    assert computed.asked[:3] == [16, 32, 128]
    assert max(computed.asked) < 350
    assert len(computed.asked) < 12


def test_where_not_even_a_step_fits_the_cell_says_so(computed: Computed) -> None:
    computed.sequence = 200 * MIB
    with pytest.raises(Failed, match="not even 4 sequences fit into 1000 MiB: out of memory") as failed:
        a_search().run(0, "cpu")
    assert failed.value.status == "oom"


def test_a_batch_without_an_end_is_given_up(computed: Computed) -> None:
    computed.sequence = 0
    with pytest.raises(Failed, match="131072 sequences still fit into 1000 MiB"):
        a_search().run(0, "cpu")


def test_a_cap_below_an_empty_process_is_a_sentence(computed: Computed) -> None:
    with pytest.raises(Unavailable, match="a rank without a model takes 300 MiB here, the cap is 299 MiB"):
        a_search(replace(CASE, cap_mib=299)).run(0, "cpu")
    assert computed.asked == []


def test_a_cap_above_the_machine_is_a_sentence(computed: Computed) -> None:
    large = replace(CASE, cap_mib=1 << 40)
    with pytest.raises(Unavailable, match=r"2 ranks may take \d+ MiB each, and \d+ MiB of the machine's memory"):
        a_search(large).run(0, "cpu")
    assert TRACK.skip(CASE, Place("cpu", 2, 4 << 30)) is None
    assert TRACK.skip(large, Place("cpu", 2, 4 << 30)) == f"2 ranks of {1 << 40} MiB need {2 << 40} MiB of memory"


def test_what_is_not_for_want_of_memory_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[Any] = [Failed("crashed", "rank 1 ended with 1"), Failed("oom", "rank 0 ended with 1: bad_alloc")]

    def ranks(*_: Any, **__: Any) -> Any:
        raise ends.pop(0)

    monkeypatch.setattr(trials, "Ranks", ranks)
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    asked = ("archbench.models.parallel.ddp", CASE.training, 2, 1 << 30, 0)
    with pytest.raises(Failed, match="rank 1 ended with 1"):
        trials.trial(*asked)
    assert trials.trial(*asked) == Trial(16, False, reason="rank 0 ended with 1: bad_alloc")
    assert trials.ALLOCATOR.keys().isdisjoint(os.environ)


def test_a_search_killed_in_a_trial_goes_on_with_the_next(computed: Computed) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CUT_OFF],
        env=os.environ | {"PYTHONPATH": os.path.dirname(__file__)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert [int(process.stdout.readline()) for _ in range(3)] == [16, 32, 72]
        process.send_signal(signal.SIGKILL)
    found = a_search().run(0, "cpu")
    assert computed.asked == [72, 76]
    assert (found.metrics["largest_batch"], found.metrics["trials"]) == (72, 4)
    assert a_search().run(1, "cpu").metrics["largest_batch"] == 72
    assert computed.asked == [72, 76, 16, 32, 72, 76], "the second search shares nothing with the first"
    assert list(folder().iterdir()) == [], "the last search of a cell removes its trials"


def test_memory_is_read_from_what_the_kernel_keeps() -> None:
    status = (
        "Name:\tpython\nVmHWM:\t  900 kB\nRssAnon:\t  300 kB\nRssFile:\t  150 kB\nRssShmem:\t  50 kB\nVmData:\t  400 kB"
    )
    assert data_peak_bytes(status) == (900 - 150 - 50 + 100) << 10


@pytest.mark.parametrize(
    "changes", [{"step": 3}, {"step": 0}, {"step": 32}, {"cap_mib": 0}, {"seeds": 0}], ids=lambda c: str(*c.items())
)
def test_a_case_that_cannot_be_searched_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"at least 1 of each|must be a multiple of 4 micro-batches and of 2 ranks"):
        replace(CASE, **changes)


def test_real_ranks_meet_a_real_cap(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    empty = empty_bytes("archbench.models.parallel.ddp", REAL.training, 2)
    case = replace(REAL, cap_mib=empty // MIB + ROOM)
    ended: dict[int, Trial] = {}

    def kept(*asked: Any) -> Trial:
        found = trials.trial(*asked)
        ended[found.batch] = found
        return found

    monkeypatch.setattr(workload, "trial", kept)
    search = searched("ddp", "ranks")(case)
    found = search.run(0, "cpu")
    search.training.ranks.close()
    end = int(found.metrics["largest_batch"])
    assert end >= case.training.batch
    assert "memory" in ended[end + case.step].reason
    assert found.metrics["empty_bytes"] == pytest.approx(empty, rel=0.02)
    assert found.metrics["empty_bytes"] < found.metrics["fixed_bytes"] < case.cap_bytes
    # Where it ended, the cap is met: what the next step takes is more than what is left.
    assert found.metrics["fixed_bytes"] + (end + 2 * case.step) * found.metrics["sequence_bytes"] > case.cap_bytes
