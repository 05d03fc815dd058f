"""Pipelines at work: the updates of one process, a stage's parameters only on its rank, spans that make sense."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="pipelines are made of torch's ranks")

from torch import distributed
from torch.multiprocessing.spawn import spawn

from archbench.models.parallel import ParallelCase, make_inputs
from archbench.models.parallel._model import language_model, loss_of, optimizer_of
from archbench.models.parallel._trainer import Mark, World
from archbench.models.parallel._ways.schedule import COMPUTE, bubble
from archbench.models.parallel._ways.timeline import Timeline
from archbench.track import Unavailable

UPDATES = 2
PIPELINES = ("gpipe", "gpipe_recompute", "gpipe_torch", "one_f_one_b")
# A number of layers that is odd, one micro-batch, micro-batches of one sequence; stages that own one part each.
CASES = {
    2: [ParallelCase(3, 32, 15, 6, micro_batches=m, vocabulary=64) for m in (1, 3, 6)],
    4: [ParallelCase(n, 32, 15, 8, micro_batches=4, world=4, vocabulary=64) for n in (2, 5)],
}


class Seen(NamedTuple):
    """What a rank has after some updates."""

    names: list[str]
    parameters: dict[str, Any]
    losses: list[float]
    marks: list[Mark]
    began_s: float  # of the last update
    ended_s: float
    left: int  # tensors of activations that outlive an update


def module(contender: str) -> Any:
    return importlib.import_module(f"archbench.models.parallel.{contender}")


def trained(contender: str, case: ParallelCase, rank: int, size: int) -> Seen:
    trainer = module(contender).trainer(World(case, rank, size, torch.device("cpu")))
    assert trainer.marks() == []
    losses = []
    for batch in torch.from_numpy(make_inputs(replace(case, steps=UPDATES), 3, "cpu")[0]):
        began = time.monotonic()
        losses.append(float(trainer.step(batch)))
        ended = time.monotonic()
    left = sum(len(getattr(trainer, name, ())) for name in ("_entered", "_results"))
    parameters = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    return Seen(list(parameters), parameters, losses, trainer.marks(), began, ended, left)


def fits(contender: str, case: ParallelCase) -> bool:
    return contender != "one_f_one_b" or case.micro_batches >= case.world


def work(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    found = {
        (contender, case.slug): tuple(trained(contender, case, rank, size))
        for case in CASES[size]
        for contender in PIPELINES
        if fits(contender, case)
    }
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4], ids=["two ranks", "four ranks"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By contender and case what each rank has seen; all of them in the same processes."""
    size: int = request.param
    folder = tmp_path_factory.mktemp("ranks")
    spawn(work, (size, folder), nprocs=size)
    held = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]
    return {key: [Seen(*rank[key]) for rank in held] for key in held[0]}


def everything(ranks: Any) -> Iterator[tuple[str, ParallelCase, list[Seen]]]:
    cases = {case.slug: case for group in CASES.values() for case in group}
    for (contender, slug), seen in ranks.items():
        yield contender, cases[slug], seen


def test_the_updates_are_those_of_one_process(ranks: Any) -> None:
    compared = 0
    for contender, case, seen in everything(ranks):
        model = language_model(case)
        optimizer = optimizer_of(model)
        losses = []
        for batch in torch.from_numpy(make_inputs(replace(case, steps=UPDATES), 3, "cpu")[0]):
            loss = loss_of(model(batch[:, :-1]), batch[:, 1:])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        for rank in seen:
            assert rank.losses == pytest.approx(losses, rel=2e-6), (contender, case.slug)
            assert rank.losses == seen[0].losses
        held = {name: value for rank in seen for name, value in rank.parameters.items()}
        for name, value in model.named_parameters():
            # A sixtieth of the learning rate of 3e-4: what rounding may do to the update of a small gradient.
            torch.testing.assert_close(
                held[name], value.detach(), rtol=0, atol=5e-6, msg=f"{contender} {case.slug} {name}"
            )
            compared += 1
    assert compared


def test_a_stage_is_on_its_rank_alone_and_none_is_empty(ranks: Any) -> None:
    for _, case, seen in everything(ranks):
        names = [name for rank in seen for name in rank.names]
        assert names == [name for name, _ in language_model(case).named_parameters()]
        assert all(rank.names for rank in seen)


def test_no_activation_outlives_an_update(ranks: Any) -> None:
    assert all(rank.left == 0 for _, _, seen in everything(ranks) for rank in seen)


def test_marks_are_the_passes_of_every_micro_batch_within_the_update(ranks: Any) -> None:
    for contender, case, seen in everything(ranks):
        everyone = list(range(case.micro_batches))
        for rank in seen:
            assert all(mark.start_s <= mark.stop_s for mark in rank.marks)
            assert all(a.stop_s <= b.start_s for a, b in pairwise(rank.marks))
            assert rank.began_s <= rank.marks[0].start_s
            assert rank.marks[-1].stop_s <= rank.ended_s
            parts = {what: sorted({m.part for m in rank.marks if m.what == what}) for what in COMPUTE}
            assert parts["forward"] == parts["backward"] == everyone
            assert parts["recompute"] == (everyone[:-1] if contender == "gpipe_recompute" else [])
            assert [mark.part for mark in rank.marks if mark.what == "update"] == [None]
        assert 0.0 < bubble([rank.marks for rank in seen]) < 1.0


def test_a_pass_begins_when_the_one_it_needs_has_ended(ranks: Any) -> None:
    for contender, case, seen in everything(ranks):
        for ahead, behind in pairwise(seen):
            for part in range(case.micro_batches):
                forward = [min(m.stop_s for m in ahead.marks if (m.what, m.part) == ("forward", part))]
                forward.append(min(m.start_s for m in behind.marks if (m.what, m.part) == ("forward", part)))
                back = [max(m.stop_s for m in behind.marks if (m.what, m.part) == ("backward", part))]
                back.append(min(m.start_s for m in ahead.marks if (m.what, m.part) == ("backward", part)))
                assert forward[0] <= forward[1], (contender, case.slug, part)
                assert back[0] <= back[1], (contender, case.slug, part)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("contender", PIPELINES)
def test_a_single_stage_is_the_whole_model(contender: str, alone: None) -> None:
    case = replace(CASES[2][1], world=1)
    seen = trained(contender, case, 0, 1)
    assert seen.names == [name for name, _ in language_model(case).named_parameters()]
    assert all(loss == pytest.approx(4.16, abs=0.2) for loss in seen.losses), "ln 64 before anything is learnt"


def test_more_stages_than_parts_and_fewer_micro_batches_than_stages_are_told_before_ranks_start() -> None:
    case = ParallelCase(1, 32, 15, 8, micro_batches=4, world=4)
    for contender in PIPELINES:
        with pytest.raises(Unavailable, match="4 stages: the model has 3 parts"):
            module(contender).CONTENDER.build(case)
    with pytest.raises(Unavailable, match="a micro-batch for each stage: 2 for 4"):
        module("one_f_one_b").CONTENDER.build(replace(case, layers=4, micro_batches=2))


def test_a_gpu_is_timed_by_events_and_the_clock_is_read_when_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    stream_ms = iter((10.0, 20.0, 50.0, 110.0))  # begin, start and stop of a piece, the event of who asks

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(stream_ms)

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, later: Event) -> float:
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(time, "monotonic", lambda: 7.0)
    timeline = Timeline(torch.device("cuda"))
    timeline.begin()
    with timeline.piece("forward", 0):
        pass
    wait, forward = timeline.marks()
    assert wait == ("wait", pytest.approx(6.90), pytest.approx(6.91), None)
    assert forward == ("forward", pytest.approx(6.91), pytest.approx(6.94), 0)
