"""What ranks tell of themselves: replicas, shards, a pipeline, and one rank that is slower than the other."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("torch", reason="ranks train with torch")

from archbench.checks import Wrong
from archbench.models.parallel import TRACK, ParallelCase, make_inputs
from archbench.models.parallel._build import Training
from archbench.models.parallel._gate import EXACT
from archbench.models.parallel._launch.ranks import Ranks
from archbench.models.parallel._measures import checkpoint as checkpoints
from archbench.models.parallel._measures import study as studies
from archbench.models.parallel._measures.instruments import PLAIN, Report
from archbench.models.parallel._measures.memory import Kinds
from archbench.models.parallel._model import language_model
from archbench.training import Outcome

CASE: ParallelCase = TRACK.test_cases[0]
TOKENS = make_inputs(CASE, 1, "cpu")[0]
RANKS = 2
PARAMETERS = 42_336  # numbers of the model at this case
MODEL_BYTES = 4 * PARAMETERS
HERE = Path(__file__).parent
OVERHEAD = 0.02  # of gloo's messages, headers and the loss: small beside 165 KiB of gradients


def started(module: str) -> Ranks:
    return Ranks(module, CASE, RANKS)


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Outcome, Path]]:
    """A whole study of ``ddp``, and the trace of a call."""
    training = Training("archbench.models.parallel.ddp", CASE, RANKS)
    folder = tmp_path_factory.mktemp("trace")
    try:
        outcome = training.study()
        training.trace(folder, TOKENS)
        yield outcome, folder
    finally:
        training.ranks.close()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Report], tuple[float, bool], int]]:
    """Reports of ``fsdp``, and a checkpoint of it: seconds, whether it restored, files."""
    ranks = started("archbench.models.parallel.fsdp")
    folder = tmp_path_factory.mktemp("checkpoint")
    try:
        reports = ranks.ask("look", TOKENS)
        yield reports, ranks.ask("checkpoint", str(folder)), len(list(folder.glob("*.distcp")))
    finally:
        ranks.close()


def test_a_study_has_every_number_and_none_below_what_it_can_be(replicas: tuple[Outcome, Path]) -> None:
    metrics = replicas[0].metrics
    kinds = ("parameters", "gradients", "optimizer")
    assert metrics.keys() == {
        *(f"{kind}_bytes" for kind in (*kinds, "activations", "tensors", "peak", "wire", "checkpoint")),
        *(f"{kind}_formula_bytes" for kind in (*kinds, "wire")),
        "exposed_communication_share",
        "mean_exposed_communication_share",
        "slowest_rank",
        "first_step_s",
        "checkpoint_s",
        "cost_of_parallelism",
        "parameter_error",
    }
    assert all(value > 0 for value in metrics.values())
    assert metrics["mean_exposed_communication_share"] <= metrics["exposed_communication_share"] < 1
    assert metrics["slowest_rank"] >= 1
    assert metrics["parameter_error"] < 1e-3
    assert metrics["peak_bytes"] > metrics["tensors_bytes"]
    assert metrics["tensors_bytes"] >= metrics["parameters_bytes"] + metrics["optimizer_bytes"]
    assert metrics["checkpoint_bytes"] > 3 * MODEL_BYTES


def test_replicas_hold_all_of_the_model(replicas: tuple[Outcome, Path]) -> None:
    metrics = replicas[0].metrics
    assert metrics["parameters_bytes"] == metrics["parameters_formula_bytes"] == MODEL_BYTES
    assert MODEL_BYTES <= metrics["gradients_bytes"] <= 1.01 * MODEL_BYTES
    assert metrics["optimizer_bytes"] == pytest.approx(2 * MODEL_BYTES, rel=0.01)  # and a count for each parameter


def test_replicas_send_what_the_formula_says(replicas: tuple[Outcome, Path]) -> None:
    metrics = replicas[0].metrics
    assert metrics["wire_formula_bytes"] == 2 * (RANKS - 1) / RANKS * MODEL_BYTES
    assert 1 <= metrics["wire_bytes"] / metrics["wire_formula_bytes"] < 1 + OVERHEAD


def test_shards_hold_half_of_the_model(shards: tuple[list[Report], Any, int]) -> None:
    found = studies.memory(shards[0])
    for kind, numbers in (("parameters", 1), ("gradients", 1), ("optimizer", 2)):
        assert found[f"{kind}_formula_bytes"] == numbers * MODEL_BYTES / RANKS
        assert 1 <= found[f"{kind}_bytes"] / found[f"{kind}_formula_bytes"] < 1.01  # cut by rows: an odd one is padded
    assert found["parameters_bytes"] + found["optimizer_bytes"] <= 0.55 * 3 * MODEL_BYTES


def test_shards_send_a_third_more_than_the_formula_because_gloo_scatters_by_an_all_reduce(
    shards: tuple[list[Report], Any, int],
) -> None:
    found = studies.talk(shards[0])
    assert found["wire_formula_bytes"] == 3 * (RANKS - 1) / RANKS * MODEL_BYTES
    assert 1 <= found["wire_bytes"] / (4 * (RANKS - 1) / RANKS * MODEL_BYTES) < 1 + OVERHEAD


def test_a_checkpoint_of_shards_restores(shards: tuple[list[Report], tuple[float, bool], int]) -> None:
    _, (took, same), files = shards
    assert took > 0
    assert same
    assert files == RANKS


def test_a_pipeline_has_a_bubble_and_a_timeline() -> None:
    ranks = started("archbench.models.parallel.gpipe")
    try:
        reports: list[Report] = ranks.ask("look", TOKENS)
    finally:
        ranks.close()
    idle = studies.idle(reports)
    assert idle["bubble_formula"] == (RANKS - 1) / (CASE.micro_batches + RANKS - 1)
    assert 0 < idle["bubble_share"] < 1
    assert [len(report.marks) for report in reports] == [PLAIN] * RANKS
    spans = studies.spans(reports)
    assert {span.lane for span in spans} == {"rank 0", "rank 1"}
    longest = max(report.update_s[-1] for report in reports)
    for rank, report in enumerate(reports):
        own = [span for span in spans if span.lane == f"rank {rank}"]
        assert min(span.start_s for span in own) >= 0
        assert max(span.stop_s for span in own) - min(span.start_s for span in own) <= report.update_s[-1]
        assert all(before.stop_s <= after.start_s for before, after in pairwise(own))
        for what in ("forward", "backward"):
            assert sorted(cast(int, s.part) for s in own if s.what == what) == list(range(CASE.micro_batches))
    assert max(span.stop_s for span in spans) <= 2 * longest
    sent = studies.talk(reports)
    assert sent["wire_formula_bytes"] == 4 * CASE.batch * CASE.length * CASE.dim
    assert sent["wire_bytes"] >= sent["wire_formula_bytes"]


def test_a_rank_that_is_slower_shows_and_not_the_one_that_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    ranks = started("lame")
    try:
        reports: list[Report] = ranks.ask("look", TOKENS)
    finally:
        ranks.close()
    found = studies.talk(reports)
    assert found["slowest_rank"] > 4  # an update of the other takes hundredths of a second
    assert min(whole - waited for whole, waited in zip(reports[1].profiled_s, reports[1].exposed_s, strict=True)) > 0.29
    assert found["exposed_communication_share"] > 0.5
    assert sum(reports[0].exposed_s) > sum(reports[1].exposed_s)


def test_every_rank_leaves_a_trace_that_tensorboard_opens(replicas: tuple[Outcome, Path], tmp_path: Path) -> None:
    loader = pytest.importorskip("torch_tb_profiler.profiler.loader", reason="TensorBoard's plugin is not installed")
    cache = pytest.importorskip("torch_tb_profiler.io").Cache(str(tmp_path))
    run = loader.RunLoader("ddp", str(replicas[1]), cache).load()
    assert run.workers == ["All", "rank0", "rank1"]
    for rank in range(RANKS):
        (profile,) = (found for found in run.profiles.values() if found.worker == f"rank{rank}")
        assert profile.has_communication
        assert [row[0] for row in profile.overview["steps"]["rows"]] == [str(1 + step) for step in range(CASE.steps)]
        counted = {entry["name"]: entry["calls"] for entry in profile.operation_table_by_name["data"]}
        assert counted["aten::scaled_dot_product_attention"] == CASE.steps * CASE.layers


def report(**changes: Any) -> Report:
    plain: dict[str, Any] = {
        "update_s": [1.0],
        "marks": [[]],
        "sent_bytes": 100.0,
        "peak_bytes": 1000,
        "memory": Kinds(1, 2, 3, 4, 5),
        "profiled_s": [1.0, 1.0],
        "exposed_s": [0.5, 0.25],
        "wire_formula": None,
        "weights_formula": None,
        "bubble_formula": None,
    }
    return Report(**(plain | changes))


def test_the_largest_rank_counts_and_no_formula_is_no_number() -> None:
    reports = [report(), report(peak_bytes=2000, sent_bytes=50.0, memory=Kinds(9, 0, 0, 0, 9))]
    found = studies.memory(reports) | studies.talk(reports) | studies.idle(reports)
    assert found == {
        "peak_bytes": 2000,
        "tensors_bytes": 9,
        "parameters_bytes": 9,
        "gradients_bytes": 2,
        "optimizer_bytes": 3,
        "activations_bytes": 4,
        "wire_bytes": 100,
        "exposed_communication_share": 0.375,
        "mean_exposed_communication_share": 0.375,
        "slowest_rank": 1.0,
    }
    assert studies.spans(reports) == []


def test_one_rank_has_nobody_to_talk_to() -> None:
    assert studies.talk([report()]) == {}


@pytest.mark.parametrize(
    ("own_s", "expected"), [([1.0, 1.0], 1.0), ([1.0, 10.0], 10.0), ([30.0, 2.0, 4.0, 3.0], 10.0), ([2.0, 1.0], 2.0)]
)
def test_the_slowest_in_medians_of_the_others(own_s: Sequence[float], expected: float) -> None:
    assert studies.slowest(own_s) == expected


class Answers:
    """In the place of ranks: what they would say to each question, and what they were asked."""

    def __init__(self, size: int = RANKS, **answers: Any) -> None:
        self.size, self._answers = size, answers
        self.asked: list[tuple[Any, ...]] = []

    def ask(self, what: str, *arguments: Any, within_s: float = 0.0) -> Any:
        self.asked.append((what, *arguments))
        return self._answers.get(what)

    def close(self) -> None:
        self.asked.append(("close",))


def in_place(answers: Answers) -> Ranks:
    return cast(Ranks, answers)


def test_a_checkpoint_that_does_not_restore_is_wrong() -> None:
    with pytest.raises(Wrong, match="other parameters or another optimizer state"):
        studies.checkpoint(in_place(Answers(checkpoint=(1.0, False))))


def test_a_checkpoint_that_would_stay_in_memory_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [SimpleNamespace(mountpoint="/", fstype="tmpfs")]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: everything)
    ranks = Answers(checkpoint=(1.0, True))
    assert studies.checkpoint(in_place(ranks)) == {}
    assert ranks.asked == []
    everything.append(SimpleNamespace(mountpoint="/var/tmp", fstype="ext4"))
    assert checkpoints.folder_on_disk() == "/var/tmp"


def test_one_worker_alone_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    together, alone = Answers(), Answers(size=1)
    monkeypatch.setattr(studies, "_seconds", lambda ranks, tokens: 3.0 if ranks is together else 4.0)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    found = studies.cost(CASE, in_place(together), lambda module, size: in_place(alone), TOKENS)
    assert found == {"cost_of_parallelism": RANKS * 3.0 / 4.0}
    assert alone.asked == [("threads", 4), ("close",)]


def test_one_gpu_has_nobody_to_be_compared_with() -> None:
    case = replace(CASE, backend="nccl")
    assert studies.cost(case, in_place(Answers(size=1)), lambda module, size: pytest.fail("started"), TOKENS) == {}


def test_parameters_of_the_first_weights_are_wrong_after_an_update() -> None:
    first = {name: value.detach().numpy() for name, value in language_model(CASE).named_parameters()}
    with pytest.raises(Wrong):
        studies.parameter_error("nobody", CASE, in_place(Answers(parameters=first)), TOKENS[:1])


def test_a_contender_of_another_precision_brings_its_own_bounds() -> None:
    module = "archbench.models.parallel.fsdp_bf16"
    own = importlib.import_module(module).CONTENDER.gate
    assert studies.bounds_of(module) is own is not EXACT
    assert studies.bounds_of("archbench.models.parallel.ddp") is studies.bounds_of("nobody") is EXACT


def test_several_hosts_have_neither_a_clock_nor_a_folder_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHBENCH_NNODES", "2")
    monkeypatch.setenv("ARCHBENCH_RDZV_ENDPOINT", "node01:29400")
    assert studies.checkpoint(in_place(Answers())) == {}
    assert studies.spans([report(), report()]) == []


def test_which_rank_is_slow_is_told_where_one_is() -> None:
    def report(profiled_s: float) -> Any:
        return SimpleNamespace(profiled_s=[profiled_s, profiled_s], exposed_s=[0.25, 0.25])

    assert studies.own_times([report(1.25)]) == {}
    assert studies.own_times([report(1.25), report(1.5)]) == {}
    assert studies.own_times([report(1.25), report(10.25)]) == {"own_time_s_over_rank": [(0.0, 1.0), (1.0, 10.0)]}
