"""Equations 19 to 27 of docs/derivations/moe.md: operations, bytes, exchange and memory, against counts."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import math
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch.utils.flop_counter import FlopCounterMode

from archbench.kernels.moe_ffn import MoeCase, _workload
from archbench.kernels.moe_ffn._layers import expert_by_expert
from archbench.kernels.moe_ffn._routing import Routing, routing

ZIPF = [1 / (e + 1) / sum(1 / k for k in range(1, 9)) for e in range(8)]


def balanced(case: MoeCase, seed: int = 0) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(case.groups, case.length, case.experts, generator=generator)
    return routing(case, logits, torch.zeros(case.groups, case.length))


@pytest.mark.parametrize("backward", [False, True])
def test_equation_19_operations(backward: bool) -> None:
    case = MoeCase(2, 17, 24, 20, 4, backward=backward)
    inputs = _workload.make_inputs(case, 0, "cpu")
    counter = FlopCounterMode(display=False)
    with counter:
        _workload.workload(case, lambda *given: expert_by_expert(case, *given))(*inputs)
    tokens, kept = 34, 68
    wanted = (3 if backward else 1) * (6 * 24 * 20 * kept + 2 * 24 * 4 * tokens)
    assert counter.get_total_flops() == wanted
    assert case.flops() == wanted
    router = 2 * 24 * 4 * tokens / (6 * 24 * 20 * kept)
    assert router == pytest.approx(case.experts / (3 * case.hidden * case.top_k))


def intensity(tokens: int, hidden: int, number_bytes: int, width: int = 64) -> float:
    """Operations a byte of one expert, from a case that has just one."""
    case = MoeCase(1, tokens, width, hidden, 1, top_k=1, dtype={2: "bf16", 4: "fp32"}[number_bytes])
    flops = case.flops()
    assert flops is not None
    router = 2 * width * tokens
    return (flops - router) / case.bytes_moved()


def test_equation_20_operations_a_byte() -> None:
    for tokens in (8, 64, 300, 5000):
        for number_bytes in (2, 4):
            want = 2 * tokens / number_bytes / (1 + 2 * tokens / (3 * 1408))
            assert intensity(tokens, 1408, number_bytes) == pytest.approx(want, rel=1e-12)


def test_equation_21_tokens_from_which_a_machine_is_busy() -> None:
    rho = 989 / 3.35
    for hidden in (1408, 14336):
        least = 2 * rho / 2 / (1 - 2 * rho / (3 * hidden))
        assert intensity(math.floor(least), hidden, 2) < rho <= intensity(math.ceil(least), hidden, 2)
    assert least == pytest.approx(299, abs=0.5)
    assert 8 / 2 * least == pytest.approx(1197, abs=0.5)
    assert 64 / 2 * least == pytest.approx(9579, abs=0.5)


def test_equation_22_experts_that_are_asked_at_all() -> None:
    for tokens in (1, 3, 8):
        asked = [int((balanced(MoeCase(1, tokens, 1, 1, 8), seed).counts_E > 0).sum()) for seed in range(300)]
        found = torch.tensor(asked, dtype=torch.float64)
        wanted = 8 * (1 - (1 - 2 / 8) ** tokens)
        assert float(found.mean()) == pytest.approx(wanted, abs=4 * float(found.std()) / math.sqrt(len(asked)) + 1e-12)
    assert wanted == pytest.approx(7.2, abs=0.005)


def test_equation_23_one_hot_tensors() -> None:
    sizes = []
    for length in (64, 128, 256):
        case = MoeCase(3, length, 1, 1, 8, router="gshard", capacity_factor=1.25)
        entries = torch.empty(case.groups, length, case.experts, case.capacity, device="meta").numel()
        assert entries == 1.25 * 2 * 3 * length**2
        assert len(balanced(case).token_A) <= 2 * case.tokens
        sizes.append(entries)
    assert [second / first for first, second in pairwise(sizes)] == [4, 4]


def test_equation_24_operations_of_dispatch_and_combine() -> None:
    case = MoeCase(2, 16, 12, 20, 4, router="gshard", capacity_factor=2.0)
    places = (case.groups, case.length, case.experts, case.capacity)
    mask, x = torch.empty(places, device="meta"), torch.empty(2, 16, 12, device="meta")
    w_in, w_out = torch.empty(4, 40, 12, device="meta"), torch.empty(4, 20, 12, device="meta")
    with FlopCounterMode(display=False) as moving:
        given = torch.einsum("btec,btd->ebcd", mask, x)
        torch.einsum("btec,ebcd->btd", mask, given)
    with FlopCounterMode(display=False) as experts:
        hidden = torch.einsum("ebcd,efd->ebcf", given, w_in)[..., :20]
        torch.einsum("ebch,ehd->ebcd", hidden, w_out)
    assert moving.get_total_flops() == 4 * math.prod(places) * 12
    assert moving.get_total_flops() / experts.get_total_flops() == pytest.approx(2 * 16 / (3 * 20))
    assert math.isclose(2 * 256 / (3 * 896), 0.19, abs_tol=0.001)


def sent_away(case: MoeCase, ranks: int) -> tuple[int, torch.Tensor]:
    """Assignments whose expert lives on another rank than their token, and how many each rank answers."""
    found = balanced(case)
    home = found.token_A // (case.tokens // ranks)
    away = found.expert_A // (case.experts // ranks)
    return int((home != away).sum()), torch.bincount(away, minlength=ranks)


def test_equation_25_bytes_between_devices() -> None:
    case, width, number_bytes = MoeCase(16, 512, 1, 1, 8), 256, 2
    kept = case.assignments
    assert kept is not None
    for ranks in (1, 2, 4, 8):
        away, _ = sent_away(case, ranks)
        there_and_back = 2 * number_bytes * width * away
        wanted = 2 * number_bytes * width * kept * (ranks - 1) / ranks
        deviation = 2 * number_bytes * width * math.sqrt(kept * (ranks - 1)) / ranks
        assert there_and_back == pytest.approx(wanted, abs=4 * deviation)


def test_equation_26_the_fullest_device() -> None:
    def longer(share: list[float], ranks: int) -> float:
        size = len(share) // ranks
        return ranks * max(sum(share[rank * size : (rank + 1) * size]) for rank in range(ranks))

    assert longer(ZIPF, 2) == pytest.approx(1.53, abs=0.005)
    assert longer(ZIPF[::2] + ZIPF[1::2], 2) == pytest.approx(1.23, abs=0.005)
    for share in (ZIPF, [1 / 8] * 8, [1.0] + [0.0] * 7):
        for ranks in (1, 2, 4, 8):
            assert longer(share, ranks) <= min(ranks, 8 * max(share)) + 1e-12
    assert longer([1 / 8] * 8, 4) == pytest.approx(1)
    case = MoeCase(4, 64, 1, 1, 8)
    _, answered = sent_away(case, 4)
    shares = (balanced(case).counts_E / (2 * case.tokens)).tolist()
    assert float(answered.max() / answered.double().mean()) == pytest.approx(longer(shares, 4), rel=1e-6)


def test_equation_27_parameters_and_what_adam_keeps() -> None:
    for experts in (1, 4, 16):
        case = MoeCase(1, 5, 6, 7, experts, top_k=1, backward=True)
        weights = [tensor.clone().requires_grad_() for tensor in _workload.make_inputs(case, 0, "cpu")[1:4]]
        assert sum(weight.numel() for weight in weights) == experts * 6 * (3 * 7 + 1)
        optimizer = torch.optim.Adam(weights)
        sum(weight.square().sum() for weight in weights).backward()
        optimizer.step()
        kept = [tensor for weight in weights for tensor in (weight, weight.grad)]
        kept += [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
        assert sum(tensor.numel() * tensor.element_size() for tensor in kept) == 16 * experts * 6 * (3 * 7 + 1)
