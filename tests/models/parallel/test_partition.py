"""Where a model is cut into stages: the least maximum, the same on every rank, not moved by noise."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="costs are measured with torch")

from hypothesis import given
from hypothesis import strategies as st

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._model import language_model
from archbench.models.parallel._trainer import World
from archbench.models.parallel._ways.partition import STEPS, counted, measured_costs, partition, stage_of

costs_of_parts = st.lists(st.integers(0, 20), min_size=1, max_size=8)


def every_cut(count: int, stages: int) -> list[list[range]]:
    """In the order of their first stage's end, then the second's."""
    cuts = ([0, *inner, count] for inner in itertools.combinations(range(1, count), stages - 1))
    return [[range(*pair) for pair in itertools.pairwise(cut)] for cut in cuts]


def slowest(costs: list[int], cut: list[range]) -> int:
    return max(sum(costs[i] for i in stage) for stage in cut)


@given(costs=costs_of_parts, stages=st.integers(1, 8))
def test_no_cut_has_a_faster_slowest_stage_and_of_equals_the_earliest_is_taken(costs: list[int], stages: int) -> None:
    if stages > len(costs):
        with pytest.raises(ValueError, match="cannot be cut"):
            partition(costs, stages)
        return
    cuts = every_cut(len(costs), stages)
    best = min(slowest(costs, cut) for cut in cuts)
    assert partition(costs, stages) == next(cut for cut in cuts if slowest(costs, cut) == best)


@pytest.mark.parametrize("stages", [0, -1, 4])
def test_stages_without_a_part_are_refused(stages: int) -> None:
    with pytest.raises(ValueError, match=f"3 parts cannot be cut into {stages} stages"):
        partition([1, 2, 3], stages)


def test_eight_blocks_are_halved_whatever_noise_is_in_their_costs() -> None:
    rng = random.Random(1)
    found = Counter()
    for _ in range(100):
        embedding, block, head = (seconds * rng.uniform(0.8, 1.2) for seconds in (0.01, 1.0, 0.08))
        costs = counted([embedding, block, head])
        found[tuple(partition([costs[0], *[costs[1]] * 8, costs[2]], 2))] += 1
    assert found == {(range(5), range(5, 10)): 100}


def test_costs_count_in_parts_of_the_largest() -> None:
    assert counted([0.0, 0.5, 0.99, 1.0]) == [0, STEPS // 2, STEPS, STEPS]


def test_parts_of_a_kind_cost_the_same_and_measuring_leaves_nothing_behind() -> None:
    case = ParallelCase(layers=3, dim=32, length=16, batch=4, micro_batches=2, world=1)
    model = language_model(case)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    costs = measured_costs(World(case, 0, 1, torch.device("cpu")), model, 2)
    assert len(costs) == 5
    assert len(set(costs[1:4])) == 1
    assert max(costs) == STEPS
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_stages_together_are_the_model_under_its_own_names() -> None:
    case = ParallelCase(layers=3, dim=32, length=16, batch=4, micro_batches=2, world=1)
    world = World(case, 0, 1, torch.device("cpu"))
    whole = language_model(case)
    x = torch.randint(0, case.vocabulary, (2, case.length))
    for stages in (1, 5):
        found = [stage_of(world, language_model(case), stage, stages, 2) for stage in range(stages)]
        names = [name for stage in found for name, _ in stage.named_parameters()]
        assert names == [name for name, _ in whole.named_parameters()]
        y = x
        for stage in found:
            y = stage(y)
        assert torch.equal(y, whole(x))
