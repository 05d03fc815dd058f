"""Equations 12 to 18 of docs/derivations/moe.md: whom a capacity drops, what chance does to a load, who asks twice.

Expectations are held against the routers themselves, with random logits. How far a mean may be off follows from its own
standard error; seeds are fixed, so that a test says the same every time.
"""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import math
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor

from archbench.kernels.moe_ffn import MoeCase
from archbench.kernels.moe_ffn._routing import Routing, routing

GROUPS = 4000  # of tokens: so many samples of each number
SIGMAS = 4.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def routed(case: MoeCase, share: list[float] | None = None, seed: int = 0) -> Routing:
    """Tokens whose first choice is expert e with probability ``share[e]``; without one, all orders are alike.

    The largest of ``log share + Gumbel noise`` falls to e with that probability.
    """
    noise = -(-torch.rand(case.groups, case.length, case.experts, generator=generator(seed)).log()).log()
    logits = noise if share is None else noise + torch.tensor(share).log()
    return routing(case, logits, torch.zeros(case.groups, case.length))


def loads(case: MoeCase, found: Routing) -> Tensor:
    """(B, E): assignments kept."""
    at = found.token_A // case.length * case.experts + found.expert_A
    return torch.bincount(at, minlength=case.groups * case.experts).view(case.groups, case.experts).double()


def dropped_share(case: MoeCase, share: list[float] | None = None) -> tuple[float, float]:
    """Of a group's assignments: the mean over groups, and its standard error."""
    per_group = 1 - loads(case, routed(case, share)).sum(-1) / (case.length * case.top_k)
    return float(per_group.mean()), float(per_group.std()) / math.sqrt(case.groups)


def switch(length: int, factor: float | None, experts: int = 8) -> MoeCase:
    return MoeCase(GROUPS, length, 1, 1, experts, top_k=1, router="switch", capacity_factor=factor)


def binomial(number: int, probability: float, of: int) -> float:
    ways = math.lgamma(of + 1) - math.lgamma(number + 1) - math.lgamma(of - number + 1)
    return math.exp(ways + number * math.log(probability) + (of - number) * math.log1p(-probability))


def excess(capacity: int, probability: float, of: int) -> float:
    """The mean of (n - C)+ of a binomial n."""
    return sum((n - capacity) * binomial(n, probability, of) for n in range(capacity + 1, of + 1))


def exact(case: MoeCase) -> float:
    """Equation (13)."""
    tokens, experts, top_k = case.length, case.experts, case.top_k
    return experts / (top_k * tokens) * excess(case.capacity, top_k / experts, tokens)


ZIPF = [1 / (e + 1) / sum(1 / k for k in range(1, 9)) for e in range(8)]


def test_equation_12_capacity() -> None:
    for length in (1, 7, 64, 100):
        for experts, top_k in ((8, 1), (5, 2), (64, 2), (2, 2)):
            for factor in (0.5, 1.0, 1.1, 1.25, 2.0, 8.0, None):
                case = MoeCase(1, length, 1, 1, experts, top_k=top_k, router="expert_choice", capacity_factor=1.0)
                case = (
                    replace(case, capacity_factor=factor)
                    if factor
                    else replace(case, router="topk", capacity_factor=None)
                )
                padded = experts * case.capacity / (top_k * length)
                assert padded <= experts / top_k
                if factor is None:
                    assert case.capacity == length
                    assert padded == pytest.approx(experts / top_k)
                elif factor * top_k <= experts:
                    assert padded >= factor - 1e-12
                    assert case.capacity - 1 < factor * top_k * length / experts
                else:
                    assert case.capacity == length


@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_equation_13_who_is_left_out_in_balance(factor: float) -> None:
    found, error = dropped_share(switch(64, factor))
    assert found == pytest.approx(exact(switch(64, factor)), abs=SIGMAS * error)
    assert 0 < error < found / 20
    two = MoeCase(GROUPS // 4, 64, 1, 1, 8, router="gshard", capacity_factor=factor)
    equal = torch.rand(two.groups, 64, 8, generator=generator()) * 1e-3  # both are drawn
    kept = loads(two, routing(two, equal, torch.zeros(two.groups, 64))).sum(-1) / 128
    assert float(1 - kept.mean()) == pytest.approx(exact(two), abs=SIGMAS * float(kept.std()) / math.sqrt(two.groups))


def test_equation_14_its_normal_approximation() -> None:
    def normal(case: MoeCase) -> float:
        mean = case.top_k / case.experts * case.length
        deviation = math.sqrt(mean * (1 - case.top_k / case.experts))
        b = (case.capacity - mean) / deviation
        density, tail = math.exp(-(b**2) / 2) / math.sqrt(2 * math.pi), math.erfc(b / math.sqrt(2)) / 2
        return deviation / mean * (density - b * tail)

    for length, close in ((64, 0.02), (256, 0.005), (1024, 0.0015)):
        assert normal(switch(length, 1.0)) == pytest.approx(exact(switch(length, 1.0)), rel=close)
    assert normal(switch(256, 1.25)) == pytest.approx(exact(switch(256, 1.25)), rel=0.15)  # a tail of 1.5 deviations
    assert normal(switch(256, 1.0)) == pytest.approx(0.399 * math.sqrt(7 / 8 / 32), rel=1e-3)
    table = {8: (0.131, 0.045, 0.0003), 32: (0.066, 0.005, 0), 256: (0.023, 0, 0)}  # the page's
    for per_expert, row in table.items():
        for factor, want in zip((1.0, 1.25, 2.0), row, strict=True):
            assert exact(switch(8 * per_expert, factor)) == pytest.approx(want, abs=6e-4)


def test_equation_15_with_skew() -> None:
    def limit(case: MoeCase) -> float:
        return sum(max(0.0, share - case.capacity / case.length) for share in ZIPF)

    small, large = switch(64, 1.25), replace(switch(2048, 1.25), groups=GROUPS // 40)
    for case in (small, large):
        found, error = dropped_share(case, ZIPF)
        whole = sum(excess(case.capacity, share, case.length) for share in ZIPF) / case.length
        assert found == pytest.approx(whole, abs=SIGMAS * error)
        assert whole >= limit(case)
        assert 0 < error < found / 20
    assert whole == pytest.approx(limit(large), rel=0.02)
    assert limit(large) == pytest.approx(0.24, abs=0.001)


def test_equation_16_entropy_of_a_load_and_chance() -> None:
    experts, tokens = 16, 256
    case = replace(switch(tokens, None, experts), groups=GROUPS // 4)
    share = loads(case, routed(case)) / tokens
    squared = share.var(-1, correction=0) / share.mean(-1) ** 2
    assert float(squared.mean()) == pytest.approx(
        (experts - 1) / tokens, abs=SIGMAS * float(squared.std()) / math.sqrt(case.groups)
    )
    entropy = -torch.special.xlogy(share, share).sum(-1) / math.log(experts)
    assert float((1 - entropy).mean()) == pytest.approx(float(squared.mean()) / (2 * math.log(experts)), rel=0.05)
    assert float(entropy.mean()) == pytest.approx(0.99, abs=0.001)


def test_equation_17_a_second_expert_at_random() -> None:
    case = MoeCase(1, 20_000, 1, 1, 8, router="gshard")
    logits = 2 * torch.randn(1, case.length, 8, generator=generator(1))
    second = logits.topk(2).values.softmax(-1)[..., 1]
    assert second.max() <= 0.5
    asked = len(routing(case, logits, torch.rand(1, case.length, generator=generator(2))).token_A)
    wanted = case.length + 2 * float(second.sum())
    deviation = math.sqrt(float((2 * second * (1 - 2 * second)).sum()))
    assert asked == pytest.approx(wanted, abs=SIGMAS * deviation)
    assert case.length + 20 * deviation < wanted < 2 * case.length - 20 * deviation


def test_equation_18_expert_choice_leaves_tokens_to_nobody() -> None:
    """Experts that choose independently are permutations; a softmax makes them differ, one taste makes them alike."""
    length, experts = 64, 8
    case = MoeCase(GROUPS, length, 1, 1, experts, router="expert_choice", capacity_factor=1.0)
    chance = (1 - case.capacity / length) ** experts
    taken = torch.rand(GROUPS, experts, length, generator=generator()).argsort(-1)[..., : case.capacity]
    nobody = length - torch.zeros(GROUPS, length).scatter_(1, taken.flatten(1), 1.0).sum(-1)
    assert float(nobody.mean()) / length == pytest.approx(
        chance, abs=SIGMAS * float(nobody.std()) / length / math.sqrt(GROUPS)
    )
    assert math.isclose((1 - 2 / 4096) ** 4096, math.exp(-2), rel_tol=1e-3)
    one_taste = torch.randn(GROUPS, length, 1, generator=generator()) * torch.tensor([1.0] * 7 + [-1e-3])
    spread = torch.randn(GROUPS, length, experts, generator=generator())
    left = [
        int(routing(case, logits, torch.zeros(GROUPS, length)).dropped) / case.tokens for logits in (spread, one_taste)
    ]
    assert left[0] < chance / 20
    assert chance < left[1] <= 1 - case.capacity / length
