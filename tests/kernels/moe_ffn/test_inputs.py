"""Inputs of the mixture of experts: the same for a seed, hard, and such that no rounding decides who goes where."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor

from archbench.harness.pool import rolled
from archbench.kernels.moe_ffn import TRACK, MoeCase, _workload
from archbench.kernels.moe_ffn._layers import expert_by_expert
from archbench.kernels.moe_ffn._routing import logits_of, route, routing
from archbench.kernels.moe_ffn._workload import MARGIN, make_inputs, too_close

CASES = TRACK.test_cases
MEASURED = (
    MoeCase(8, 256, 256, 2, 8),
    MoeCase(8, 256, 256, 2, 8, skew=1.0),
    MoeCase(8, 256, 256, 2, 8, router="gshard", capacity_factor=1.0),
    MoeCase(8, 256, 256, 2, 8, top_k=1, router="switch", capacity_factor=1.25, skew=1.0, dtype="bf16"),
    MoeCase(8, 256, 256, 2, 8, router="expert_choice", capacity_factor=1.0),
    MoeCase(8, 256, 256, 2, 64),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.slug)
def test_inputs_are_the_same_for_a_seed_and_of_the_dtype_of_the_case(case: MoeCase) -> None:
    first, again, other = (make_inputs(case, seed, "cpu") for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    x, router, w_in, w_out, uniform, *dy = first
    assert x.shape == (case.groups, case.length, case.dim)
    assert router.shape == (case.experts, case.dim)
    assert w_in.shape == (case.experts, 2 * case.hidden, case.dim)
    assert w_out.shape == (case.experts, case.hidden, case.dim)
    assert uniform.shape == x.shape[:2]
    assert uniform.dtype == torch.float32
    assert [tensor.shape for tensor in dy] == ([x.shape] if case.backward else [])
    assert {tensor.dtype for tensor in (x, router, w_in, w_out, *dy)} == {_workload.TORCH_DTYPE[case.dtype]}


def way(case: MoeCase, logits: Tensor, uniform: Tensor) -> tuple[list[int], list[int], int]:
    found = routing(case, logits, uniform)
    return found.token_A.tolist(), found.counts_E.tolist(), int(found.dropped)


@pytest.mark.parametrize("case", [*CASES, *MEASURED], ids=lambda case: case.slug)
def test_logits_that_are_off_by_a_tenth_of_the_margin_route_the_same(case: MoeCase) -> None:
    """Ten times what float32 is off: so nobody who computes logits in float32 is told apart by them."""
    x, router, _, _, uniform, *_ = make_inputs(case, 3, "cpu")
    exact = x.double() @ router.double().T
    wanted = way(case, exact, uniform)
    assert way(case, logits_of(x, router), uniform) == wanted
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        noise = MARGIN / 10 * (2 * torch.rand(exact.shape, generator=generator) - 1)
        assert way(case, exact + noise, uniform) == wanted
        assert way(case, exact, (uniform + MARGIN / 10 * noise.sign()[..., 0]).clamp(0, 0.9999999)) == wanted


def test_without_the_margin_some_token_would_be_too_close() -> None:
    """The guard has work to do: among tokens as they are drawn, some stand on a border."""
    for case in MEASURED:
        x, router, _, _, uniform, *_ = make_inputs(case, 0, "cpu")
        assert not too_close(case, x, router, uniform).any()
        drawn = torch.randn(64, *x.shape[1:], generator=torch.Generator().manual_seed(5)).to(x.dtype)
        more = replace(case, groups=64)
        assert too_close(more, drawn, router, torch.rand(64, case.length)).any(), case.slug


def test_a_token_between_two_experts_is_too_close() -> None:
    case = MoeCase(1, 3, 2, 1, 3, top_k=1)
    router = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    x = torch.tensor([[[1.0, 1.0 + MARGIN / 2], [1.0, 1.0 + 2 * MARGIN], [3.0, 1.0]]])
    assert too_close(case, x, router, torch.zeros(1, 3)).tolist() == [[True, False, False]]
    second = replace(case, experts=2, top_k=2, router="gshard")  # its share is near a half, and its draw is as near
    drawn = torch.tensor([[0.0, 1 - MARGIN, 0.5]])
    assert too_close(second, x, router[:2], drawn).tolist() == [[True, True, False]]


def test_the_last_token_an_expert_takes_is_too_close_to_the_next() -> None:
    case = MoeCase(1, 4, 2, 1, 2, top_k=1, router="expert_choice", capacity_factor=1.0)
    assert case.capacity == 2
    x = torch.tensor([[[3.0, 0.0], [1.0 + 1e-6, 0.0], [1.0, 0.0], [-3.0, 0.0]]])
    close = too_close(case, x, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(1, 4))
    assert close.tolist() == [[False, True, True, False]]
    everyone = replace(case, capacity_factor=2.0)
    assert not too_close(everyone, x, torch.eye(2), torch.zeros(1, 4)).any()


def test_inputs_that_cannot_be_made_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workload, "MARGIN", 1e9)
    with pytest.raises(RuntimeError, match="decisions of the router stay within"):
        make_inputs(MoeCase(1, 2, 3, 1, 4), 0, "cpu")


def test_skew_makes_the_first_experts_favourites() -> None:
    loads = {}
    for skew in (0.0, 1.0, 8.0):
        case = MoeCase(8, 256, 64, 1, 8, skew=skew, top_k=1)
        x, router, _, _, uniform = make_inputs(case, 0, "cpu")
        loads[skew] = (route(case, x, router, uniform).counts_E / case.tokens).tolist()
    assert max(loads[0.0]) < 0.2
    assert loads[1.0][0] > 0.3 > 3 * loads[1.0][7]
    assert loads[8.0][0] > 0.95
    shifted = make_inputs(MoeCase(8, 256, 64, 1, 8, skew=1.0), 0, "cpu")
    means = logits_of(*shifted[:2]).mean((0, 1))
    assert torch.allclose(means, -torch.arange(1.0, 9).log(), atol=0.1)


def test_the_test_cases_drop_and_leave_experts_without_tokens() -> None:
    """What tests are to see happens in them: every router drops, an expert is idle, experts outnumber tokens."""
    dropping, idle = set(), 0
    for case in CASES:
        x, router, _, _, uniform, *_ = make_inputs(case, 0, "cpu")
        found = route(case, x, router, uniform)
        if int(found.dropped):
            dropping.add(case.router)
        idle += int((found.counts_E == 0).any())
    assert dropping == {"gshard", "switch", "expert_choice"}
    assert idle >= 1
    assert any(case.experts > case.tokens for case in CASES)


def test_a_loss_moves_the_router_as_much_as_the_answers_do() -> None:
    """By the factor with which the workload counts it, whatever the number of tokens."""
    for groups in (1, 8):
        case = MoeCase(groups, 256, 64, 8, 8, top_k=1, router="switch", backward=True)
        x, router, w_in, w_out, uniform, dy = make_inputs(case, 0, "cpu")
        leaf = router.clone().requires_grad_()
        found = route(case, x, leaf, uniform)
        _, loss, _, _, whole, *_ = _workload.workload(case, partial(expert_by_expert, case))(
            x, router, w_in, w_out, uniform, dy
        )
        assert torch.equal(loss, found.loss.detach())
        (by_loss,) = torch.autograd.grad(found.loss, leaf)
        by_loss = by_loss * case.tokens * case.dim**0.5
        by_answers = whole - by_loss
        assert 0.1 < float(by_loss.norm() / by_answers.norm()) < 10


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: case.slug)
def test_what_is_timed_asks_the_experts_as_the_gate_does(case: MoeCase) -> None:
    """Between timed calls inputs are rolled; the router's decisions, their margins and the drops roll along."""
    given = make_inputs(case, 1, "cpu")
    later = rolled(given, 101, TRACK.rolls(case))
    assert not torch.equal(given[0], later[0])
    assert not too_close(case, later[0], later[1], later[4]).any()
    loads = [route(case, x, router, uniform).counts_E.sort().values for x, router, _, _, uniform in (given, later)]
    if case.capacity_factor is None or case.router == "expert_choice":
        assert torch.equal(*loads)
    if case.skew:
        firsts = [logits_of(x, router).argmax(-1).flatten().bincount() for x, router, *_ in (given, later)]
        assert torch.equal(*firsts)


def test_the_order_of_those_that_are_chosen_decides_nothing() -> None:
    """All experts are chosen: however near they are, a token need not be drawn again."""
    case = MoeCase(1, 64, 8, 2, 256, top_k=256)
    assert not too_close(case, *make_inputs(case, 1, "cpu")[:2], torch.zeros(1, 64)).any()
