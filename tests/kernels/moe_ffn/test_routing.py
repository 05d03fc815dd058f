"""Routers against the papers' algorithms, told slowly: token by token, with counters, in plain Python.

The transcriptions share no line with ``_routing``: they walk through the tokens of one group and keep a list. Draws are
many and small, balanced and skewed, with more experts than tokens, as many experts a token as there are, room for one.
"""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor

from archbench.kernels.moe_ffn import Z_WEIGHT, MoeCase
from archbench.kernels.moe_ffn._routing import Routing, routing


class Told(NamedTuple):
    """What an algorithm says of one group."""

    weights: dict[tuple[int, int], float]  # by token and expert, of the assignments that are kept
    dropped: int
    loss: float


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def ranked(row: list[float]) -> list[int]:
    return sorted(range(len(row)), key=lambda e: -row[e])


def topk(case: MoeCase, rows: list[list[float]], uniform: list[float]) -> Told:
    """Mixtral: a softmax over the logits of the K largest."""
    weights: dict[tuple[int, int], float] = {}
    for s, row in enumerate(rows):
        best = ranked(row)[: case.top_k]
        for e, weight in zip(best, softmax([row[e] for e in best]), strict=True):
            weights[s, e] = weight
    return Told(weights, 0, 0.0)


def gshard(case: MoeCase, rows: list[list[float]], uniform: list[float]) -> Told:
    """Algorithm 1: a loop over the tokens for first experts, and then one for second experts."""
    experts, size = case.experts, len(rows)
    weights: dict[tuple[int, int], float] = {}
    dropped = 0
    counters = [0] * experts
    gates = [softmax(row) for row in rows]
    mean_gates = [sum(gate[e] for gate in gates) / size for e in range(experts)]
    for s, gate in enumerate(gates):
        e1, e2 = ranked(gate)[:2]
        if counters[e1] < case.capacity:
            weights[s, e1] = gate[e1] / (gate[e1] + gate[e2])
        else:
            dropped += 1
        counters[e1] += 1
    # The paper's loss is the mean over experts of c / S * m; times E^2, it is 1 in balance, as in the authors' code.
    loss = experts**2 * sum(c / size * m for c, m in zip(counters, mean_gates, strict=True)) / experts
    for s, gate in enumerate(gates):
        e1, e2 = ranked(gate)[:2]
        g2 = gate[e2] / (gate[e1] + gate[e2])
        if 2 * g2 > uniform[s]:
            if counters[e2] < case.capacity:
                weights[s, e2] = g2
            else:
                dropped += 1
            counters[e2] += 1
    return Told(weights, dropped, loss)


def switch(case: MoeCase, rows: list[list[float]], uniform: list[float]) -> Told:
    experts, size = case.experts, len(rows)
    weights: dict[tuple[int, int], float] = {}
    taken = [0] * experts
    gates = [softmax(row) for row in rows]
    chosen = [ranked(gate)[0] for gate in gates]
    for s, e in enumerate(chosen):
        if taken[e] < case.capacity:
            weights[s, e] = gates[s][e]
            taken[e] += 1
    balance = experts * sum(chosen.count(e) / size * sum(gate[e] for gate in gates) / size for e in range(experts))
    z = sum(math.log(sum(map(math.exp, row))) ** 2 for row in rows) / size
    return Told(weights, size - len(weights), balance + Z_WEIGHT * z)


def expert_choice(case: MoeCase, rows: list[list[float]], uniform: list[float]) -> Told:
    gates = [softmax(row) for row in rows]
    weights: dict[tuple[int, int], float] = {}
    for e in range(case.experts):
        for s in sorted(range(len(rows)), key=lambda s: -gates[s][e])[: case.capacity]:
            weights[s, e] = gates[s][e]
    return Told(weights, len(rows) - len({s for s, _ in weights}), 0.0)


ALGORITHMS: dict[str, Callable[[MoeCase, list[list[float]], list[float]], Told]] = {
    "topk": topk,
    "gshard": gshard,
    "switch": switch,
    "expert_choice": expert_choice,
}


def case_of(router: str, groups: int, length: int, experts: int, top_k: int, factor: float | None) -> MoeCase:
    return MoeCase(groups, length, 1, 1, experts, top_k=top_k, router=router, capacity_factor=factor, dtype="fp64")


CASES = (
    *(case_of("topk", 2, 9, 5, k, None) for k in (1, 2, 5)),
    case_of("topk", 1, 3, 7, 4, None),  # more experts than tokens
    case_of("topk", 3, 1, 1, 1, None),
    *(case_of("gshard", 2, 11, 4, 2, factor) for factor in (0.1, 0.5, 1.0, 1.25, 2.0, None)),  # 0.1: room for one
    case_of("gshard", 1, 3, 7, 2, 1.0),
    case_of("gshard", 2, 8, 2, 2, 1.0),  # K = E
    *(case_of("switch", 2, 11, 4, 1, factor) for factor in (0.1, 1.0, 1.25, None)),
    case_of("switch", 1, 3, 7, 1, 1.0),
    case_of("switch", 2, 4, 1, 1, 0.5),
    *(case_of("expert_choice", 2, 11, 4, 2, factor) for factor in (0.1, 1.0, 2.0)),
    case_of("expert_choice", 1, 3, 7, 1, 1.0),
    case_of("expert_choice", 2, 6, 3, 3, 1.0),  # everybody takes everybody
)
SKEWS = (0.0, 1.0, 6.0)  # at 6 nearly all tokens want the first expert
DRAWS = 12


def drawn(case: MoeCase, skew: float, seed: int) -> tuple[Tensor, Tensor]:
    """Logits (B, T, E) and uniform (B, T). Equal numbers do not occur."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(case.groups, case.length, case.experts, generator=generator, dtype=torch.float64)
    logits -= skew * torch.arange(1, case.experts + 1).log()
    return logits, torch.rand(case.groups, case.length, generator=generator)


def weights_of(case: MoeCase, found: Routing) -> list[dict[tuple[int, int], float]]:
    """By group, then by token of the group and expert."""
    groups: list[dict[tuple[int, int], float]] = [{} for _ in range(case.groups)]
    rows = zip(found.token_A.tolist(), found.expert_A.tolist(), found.weight_A.tolist(), strict=True)
    for token, expert, weight in rows:
        group, place = divmod(token, case.length)
        assert (place, expert) not in groups[group]
        groups[group][place, expert] = weight
    return groups


def named(case: MoeCase) -> str:
    return case.slug.removesuffix("-fp64-fwd")


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_router_does_what_its_paper_says(case: MoeCase, skew: float) -> None:
    for seed in range(DRAWS):
        logits, uniform = drawn(case, skew, seed)
        found = routing(case, logits, uniform)
        told = [ALGORITHMS[case.router](case, *group) for group in zip(logits.tolist(), uniform.tolist(), strict=True)]
        for got, want in zip(weights_of(case, found), told, strict=True):
            assert got == pytest.approx(want.weights, rel=1e-12)
        assert found.dropped.dtype == torch.int64
        assert found.dropped.shape == found.loss.shape == ()
        assert int(found.dropped) == sum(group.dropped for group in told)
        assert float(found.loss) == pytest.approx(sum(group.loss for group in told) / case.groups, rel=1e-12)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_the_list_is_sorted_by_expert_and_then_by_token(case: MoeCase) -> None:
    for seed in range(DRAWS):
        found = routing(case, *drawn(case, 1.0, seed))
        rows = list(zip(found.expert_A.tolist(), found.token_A.tolist(), strict=True))
        assert rows == sorted(rows)
        assert found.counts_E.dtype == found.token_A.dtype == torch.int64
        assert found.counts_E.shape == (case.experts,)
        assert int(found.counts_E.sum()) == len(found.weight_A) == len(rows)
        assert int(found.counts_E.max()) <= case.groups * case.capacity


@pytest.mark.parametrize("case", CASES, ids=named)
def test_nobody_is_dropped_in_silence(case: MoeCase) -> None:
    for seed in range(DRAWS):
        logits, uniform = drawn(case, 2.0, seed)
        found = routing(case, logits, uniform)
        kept = len(found.token_A)
        if case.router == "expert_choice":
            assert kept == case.assignments
            assert int(found.dropped) == case.tokens - len(set(found.token_A.tolist()))
            continue
        asked = case.tokens * case.top_k
        if case.router == "gshard":
            best = logits.softmax(-1).topk(2).values
            asked = case.tokens + int((uniform < 2 * best[..., 1] / best.sum(-1)).sum())
        assert kept + int(found.dropped) == asked


@pytest.mark.parametrize("case", CASES, ids=named)
def test_slots_say_where_an_assignment_stands(case: MoeCase) -> None:
    logits, uniform = drawn(case, 1.0, 0)
    found = routing(case, logits, uniform)
    everyone = case.router != "gshard" and case.capacity == case.length and case.router != "expert_choice"
    assert (found.slots_NK is not None) == everyone
    if found.slots_NK is not None:
        assert found.slots_NK.shape == (case.tokens, case.top_k)
        assert sorted(found.slots_NK.flatten().tolist()) == list(range(len(found.token_A)))
        best = logits.flatten(0, 1).topk(case.top_k).indices  # likeliest first
        assert torch.equal(found.expert_A[found.slots_NK], best)
        assert torch.equal(found.token_A[found.slots_NK], torch.arange(case.tokens).unsqueeze(-1).expand_as(best))


@pytest.mark.parametrize("case", CASES, ids=named)
def test_gradients_of_weights_and_loss_are_those_of_finite_differences(case: MoeCase) -> None:
    """A direction for each assignment, so that no two gradients of weights are confused. The draw is no function."""
    logits, uniform = drawn(case, 0.5, 3)
    with_gradient = logits.clone().requires_grad_()
    found = routing(case, with_gradient, uniform)
    directions = torch.randn(len(found.weight_A), dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def asked(result: Routing) -> Tensor:
        return (result.weight_A * directions).sum() + 3 * result.loss

    (gradient,) = torch.autograd.grad(asked(found), with_gradient)
    step = 1e-6
    for place in range(logits.numel()):
        shifted = [logits.clone(), logits.clone()]
        for sign, moved in zip((1, -1), shifted, strict=True):
            moved.view(-1)[place] += sign * step
        above, below = (asked(routing(case, moved, uniform)) for moved in shifted)
        assert float((above - below) / (2 * step)) == pytest.approx(float(gradient.flatten()[place]), abs=1e-7)


def test_first_choices_come_before_second_ones() -> None:
    """Token 0 wants expert 1 second, tokens 1 and 2 want it first; there is room for two."""
    case = MoeCase(1, 3, 1, 1, 3, router="gshard", capacity_factor=1.0)
    assert case.capacity == 2
    logits = torch.tensor([[[2.0, 1.9, 0.0], [0.0, 2.0, 1.9], [0.0, 2.0, 1.9]]])
    found = routing(case, logits, torch.zeros(1, 3))
    assert list(zip(found.token_A.tolist(), found.expert_A.tolist(), strict=True)) == [
        (0, 0), (1, 1), (2, 1), (1, 2), (2, 2),
    ]  # fmt: skip
    assert int(found.dropped) == 1


def test_a_second_expert_that_is_not_drawn_takes_no_place() -> None:
    """As in the authors' code. Two tokens want expert 1 second, there is room for one; the first one's draw fails."""
    case = MoeCase(1, 2, 1, 1, 4, router="gshard", capacity_factor=1.0)
    assert case.capacity == 1
    logits = torch.tensor([[[2.0, 1.0, 0.0, 0.0], [0.0, 1.0, 2.0, 0.0]]])
    found = routing(case, logits, torch.tensor([[0.99, 0.0]]))
    assert list(zip(found.token_A.tolist(), found.expert_A.tolist(), strict=True)) == [(0, 0), (1, 1), (1, 2)]
    assert int(found.dropped) == 0


def test_a_second_expert_is_drawn_with_twice_its_share() -> None:
    case = MoeCase(1, 4, 1, 1, 2, router="gshard")
    second = torch.tensor([0.2, 0.2, 0.495, 0.495], dtype=torch.float64)
    logits = torch.stack((1 - second, second), -1).log().unsqueeze(0)
    found = routing(case, logits, torch.tensor([[0.39, 0.41, 0.98, 0.995]]))
    assert found.token_A[found.expert_A == 1].tolist() == [0, 2]


@pytest.mark.parametrize("router", ["topk", "gshard", "switch"])
def test_all_tokens_to_one_expert_is_an_answer(router: str) -> None:
    case = case_of(router, 2, 8, 4, 1 if router == "switch" else 2, None if router == "topk" else 1.0)
    logits = torch.zeros(2, 8, 4, dtype=torch.float64)
    logits[..., 2] = 60.0
    logits[..., 1] = 1.0
    found = routing(case, logits, torch.full((2, 8), 0.5))
    wanted = {"topk": [0, 16, 16, 0], "gshard": [0, 0, 8, 0], "switch": [0, 0, 4, 0]}
    assert found.counts_E.tolist() == wanted[router]
    assert int(found.dropped) == {"topk": 0, "gshard": 8, "switch": 12}[router]
    if router != "topk":
        z = Z_WEIGHT * 60**2 if router == "switch" else 0
        assert float(found.loss) == pytest.approx(4 + z)  # E: the largest that balance can be


def test_who_comes_next_is_seen_where_probabilities_are_too_small_for_a_float() -> None:
    """Beside 3e4, exp(-3e4 + 2) is 0 and so is exp(-3e4 + 1); float32 cannot tell them apart, logits can."""
    logits = torch.tensor([[[3e4, 0.0, 2.0, 1.0], [2.0, 1.0, 3e4, 0.0]]])
    for router, top_k, wanted in (("topk", 2, [0, 2, 2, 0]), ("topk", 3, [0, 2, 3, 2, 0, 1])):
        case = MoeCase(1, 2, 1, 1, 4, top_k=top_k, router=router)
        found = routing(case, logits, torch.zeros(1, 2))
        assert found.slots_NK is not None
        assert found.expert_A[found.slots_NK].flatten().tolist() == wanted
    case = MoeCase(1, 2, 1, 1, 4, top_k=1, router="expert_choice", capacity_factor=2.0)
    assert case.capacity == 1
    assert routing(case, logits, torch.zeros(1, 2)).token_A.tolist() == [0, 1, 1, 0]
