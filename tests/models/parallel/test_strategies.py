"""Ways of cutting up training, in shared ranks: every parameter as one process has it, and what each rank holds."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="ranks run torch")

from torch import distributed
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

from archbench.models.parallel import ParallelCase, make_inputs
from archbench.models.parallel._gate import EXACT, Bounds, judge, judge_parameters
from archbench.models.parallel._measures.wire import sent_bytes
from archbench.models.parallel._model import language_model
from archbench.models.parallel._trainer import World
from archbench.track import Unavailable

STRATEGIES = {
    2: ("ddp", "ddp_bf16_compressed", "fsdp", "fsdp_bf16", "fsdp_recompute", "tensor_parallel"),
    4: ("fsdp", "fsdp_pp", "tensor_parallel"),
}
CASES = {  # a number of layers that is odd, a length that no rank count divides, a batch of one sequence a micro-batch
    2: ParallelCase(3, 32, 15, 6, micro_batches=3, vocabulary=66, steps=3),
    4: ParallelCase(3, 32, 15, 8, micro_batches=4, vocabulary=66, world=4, steps=3),
}
# Gloo's reduce-scatter sends what an all-reduce does, twice what a ring needs: in formulas' bytes.
SCATTERED = {"fsdp": 4 / 3, "fsdp_recompute": 4 / 3, "fsdp_bf16": 12 / 8, "fsdp_pp": 3 / 2}
SEEDS = (3, 4)  # of calls, one after the other: the second begins again


class Seen(NamedTuple):
    """What rank 0 can answer after a call, and what this rank held."""

    answers: list[dict[str, Any]]
    parameters: list[dict[str, Any]]  # after each call
    held: int  # numbers of parameters on this rank
    state: int  # numbers of optimizer state
    formula: float | None
    what: set[str]  # of its marks
    sent: int  # bytes, in one more update
    wire: float | None  # the formula of that


def trained(contender: str, case: ParallelCase, rank: int) -> Seen:
    module = importlib.import_module(f"archbench.models.parallel.{contender}")
    trainer = module.trainer(World(case, rank, case.world, torch.device("cpu")))

    def gathered(value: Any) -> list[Any]:
        everyone: list[Any] | None = [None] * case.world if rank == 0 else None
        distributed.gather_object(value, everyone)
        return everyone or []

    answers, parameters = [], []
    for seed in SEEDS:
        trainer.reset()
        losses = [trainer.step(batch) for batch in torch.from_numpy(make_inputs(case, seed, "cpu")[0])]
        answers.append({"losses": torch.stack(losses).numpy(), "digest": trainer.digest(gathered)})
        parameters.append(trainer.whole(gathered))
    held = sum(shard.values.numel() for shard in trainer.shards())
    states = [value for state in trainer.optimizer.state.values() for value in state.values() if value.dim()]
    state = sum((value.to_local() if isinstance(value, DTensor) else value).numel() for value in states)
    marks = {mark.what for mark in trainer.marks()}
    formula = trainer.weights_formula()
    batch = torch.from_numpy(make_inputs(case, SEEDS[0], "cpu")[0])[0]
    distributed.barrier()
    before = sent_bytes() or 0
    trainer.step(batch)
    sent = (sent_bytes() or 0) - before
    return Seen(answers, parameters, held, state, formula, marks, sent, trainer.wire_formula())


def work(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    found = {contender: tuple(trained(contender, CASES[size], rank)) for contender in STRATEGIES[size]}
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[Seen]]:
    """By contender and number of ranks what each rank has seen."""
    found = {}
    for size, contenders in STRATEGIES.items():
        folder = tmp_path_factory.mktemp("ranks")
        spawn(work, (size, folder), nprocs=size)
        held = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]
        found |= {(contender, size): [Seen(*rank[contender]) for rank in held] for contender in contenders}
    return found


ALL = [(contender, size) for size, contenders in STRATEGIES.items() for contender in contenders]
every = pytest.mark.parametrize("key", ALL, ids=[f"{contender}-{size}" for contender, size in ALL])


def bounds_of(contender: str) -> Bounds:
    return importlib.import_module(f"archbench.models.parallel.{contender}").CONTENDER.gate or EXACT


@every
def test_each_call_passes_the_gate(ranks: Any, key: tuple[str, int]) -> None:
    for seed, answer in zip(SEEDS, ranks[key][0].answers, strict=True):
        assert judge(CASES[key[1]], make_inputs(CASES[key[1]], seed, "cpu")[0], answer, bounds_of(key[0])) < 0.1


@every
def test_every_parameter_is_that_of_one_process(ranks: Any, key: tuple[str, int]) -> None:
    for seed, parameters in zip(SEEDS, ranks[key][0].parameters, strict=True):
        tokens = make_inputs(CASES[key[1]], seed, "cpu")[0]
        assert judge_parameters(CASES[key[1]], tokens, parameters, bounds_of(key[0])) < 0.1


@every
def test_the_loss_is_the_same_on_every_rank(ranks: Any, key: tuple[str, int]) -> None:
    losses = [[list(answer["losses"]) for answer in rank.answers] for rank in ranks[key]]
    assert all(rank == losses[0] for rank in losses)


@every
def test_ranks_hold_what_the_formula_says_and_two_numbers_of_state_for_each(ranks: Any, key: tuple[str, int]) -> None:
    for rank in ranks[key]:
        assert rank.state == 2 * rank.held
        assert rank.formula is not None
    # The sum: where ranks do not divide a parameter's first axis, one has a row more than another.
    assert sum(rank.held for rank in ranks[key]) == pytest.approx(sum(rank.formula for rank in ranks[key]), rel=1e-9)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a connection's bytes")
@every
def test_bytes_on_the_wire_are_those_of_the_formula(ranks: Any, key: tuple[str, int]) -> None:
    expected = SCATTERED.get(key[0], 1.0)
    for rank in ranks[key]:
        # At most a tenth more: messages have headers, and shards of uneven length are padded.
        assert 0.97 * expected < rank.sent / rank.wire < 1.1 * expected


def test_sharding_halves_parameters_and_state(ranks: Any) -> None:
    whole = sum(p.numel() for p in language_model(CASES[2]).parameters())
    assert ranks["ddp", 2][0].held == whole
    assert max(rank.held for rank in ranks["fsdp", 2]) <= 0.51 * whole
    assert max(rank.held for rank in ranks["fsdp", 4]) <= 0.27 * whole
    assert max(rank.held for rank in ranks["tensor_parallel", 2]) <= 0.55 * whole


def test_eight_bits_on_the_wire_are_seen_and_those_of_the_compute_more(ranks: Any) -> None:
    tokens = make_inputs(CASES[2], SEEDS[0], "cpu")[0]
    names = ("fsdp", "ddp_bf16_compressed", "fsdp_bf16")
    found = [ranks[name, 2][0].parameters[0] for name in names]
    loose = bounds_of("fsdp_bf16")
    exact, wire, compute = (judge_parameters(CASES[2], tokens, parameters, loose) for parameters in found)
    assert exact < 1e-4 < wire < compute


def test_the_stages_of_the_mesh_leave_a_timeline(ranks: Any) -> None:
    assert all(rank.what >= {"forward", "backward", "update"} for rank in ranks["fsdp_pp", 4])


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (ParallelCase(3, 32, 15, 8), "needs 4 ranks"),
        (ParallelCase(3, 32, 15, 8, micro_batches=1, world=4), "micro-batches"),
        (ParallelCase(3, 32, 15, 4, micro_batches=4, world=4), "micro-batches"),
    ],
    ids=["two ranks", "one micro-batch", "half a sequence"],
)
def test_a_mesh_of_two_by_two_says_what_it_needs(case: ParallelCase, reason: str) -> None:
    from archbench.models.parallel import fsdp_pp

    with pytest.raises(Unavailable, match=reason):
        fsdp_pp.CONTENDER.build(case)
