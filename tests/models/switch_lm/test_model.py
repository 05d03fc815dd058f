"""The model: a Switch layer against the plainest loop over tokens, precision, causality, and what may go wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor  # noqa: E402

from archbench.models.switch_lm import TRACK, SwitchCase  # noqa: E402
from archbench.models.switch_lm._model import Experts, LanguageModel, Switch, dense, switch  # noqa: E402
from archbench.models.switch_lm._text import loss, text_of  # noqa: E402
from archbench.models.train import seeded  # noqa: E402
from archbench.track import Unavailable  # noqa: E402

CASE = SwitchCase("cpython", length=12, width=16, layers=4, heads=2, batch=3, steps=2, curve_rows=6, seeds=1)
WIDTH, HIDDEN = 6, 10


def layer(experts: int, capacity_factor: float) -> Switch:
    with seeded(5):
        return Switch(WIDTH, HIDDEN, experts, capacity_factor).double()


def one_by_one(asked: Switch, x_ND: Tensor) -> tuple[Tensor, list[int], int]:
    """Every token walks to its expert, which has room for so many; the answers, who wanted whom, how many had none."""
    tokens = len(x_ND)
    capacity = min(tokens, math.ceil(asked.capacity_factor * tokens / asked.experts))
    room = [capacity] * asked.experts
    rows, wanted, dropped = [], [], 0
    for x_D in x_ND:
        probability_E = torch.softmax(asked.router_ED @ x_D, 0)
        expert = int(probability_E.argmax())
        wanted.append(expert)
        if room[expert]:
            room[expert] -= 1
            said_D = torch.clamp(x_D @ asked.rise_EDF[expert], min=0) @ asked.fall_EFD[expert]
            rows.append(probability_E[expert] * said_D)
        else:
            dropped += 1
            rows.append(torch.zeros_like(x_D))
    return torch.stack(rows), wanted, dropped


@pytest.mark.parametrize(
    ("tokens", "experts", "capacity_factor"), [(23, 4, 1.25), (23, 4, 0.5), (3, 7, 2.0), (1, 1, 1)]
)
def test_a_switch_layer_is_the_loop_over_tokens_with_its_gradients(
    tokens: int, experts: int, capacity_factor: float
) -> None:
    asked = layer(experts, capacity_factor)
    x_ND = torch.randn(tokens, WIDTH, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    dy_ND = torch.randn(x_ND.shape, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    leaves = [x_ND.requires_grad_(), *asked.parameters()]
    y_ND, routed = asked(x_ND)
    want_ND, wanted, dropped = one_by_one(asked, x_ND)
    assert int(routed.routing.dropped) == dropped
    assert routed.logits_NE.argmax(-1).tolist() == wanted
    torch.testing.assert_close(y_ND, want_ND)
    got = torch.autograd.grad(y_ND, leaves, dy_ND)
    for gradient, expected in zip(got, torch.autograd.grad(want_ND, leaves, dy_ND), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_gradients_of_the_experts_agree_with_differences() -> None:
    draw = torch.Generator().manual_seed(3)
    x_ND, weight_A, rise_EDF, fall_EFD = (
        torch.randn(shape, dtype=torch.double, generator=draw).requires_grad_()
        for shape in ((5, 3), (4,), (3, 3, 4), (3, 4, 3))
    )
    token_A, counts = torch.tensor([4, 0, 3, 1]), [1, 0, 3]
    assert torch.autograd.gradcheck(
        lambda *leaves: Experts.apply(*leaves, token_A, counts), (x_ND, weight_A, rise_EDF, fall_EFD)
    )


def test_all_tokens_to_one_expert_leave_the_others_without_a_gradient_and_are_dropped_beyond_its_room() -> None:
    asked = layer(4, 1.0)
    with torch.no_grad():
        asked.router_ED.copy_(torch.eye(4, WIDTH))
    x_ND = torch.zeros(8, WIDTH, dtype=torch.double)
    x_ND[:, 2] = 5
    y_ND, routed = asked(x_ND)
    y_ND.sum().backward()
    assert routed.routing.counts_E.tolist() == [0, 0, 2, 0]
    assert int(routed.routing.dropped) == 6
    assert y_ND[:2].abs().min() > 0
    assert not y_ND[2:].any()
    assert asked.fall_EFD.grad is not None
    assert asked.fall_EFD.grad.flatten(1).any(1).tolist() == [False, False, True, False]


def test_router_logits_that_are_not_finite_are_refused() -> None:
    x_ND = torch.ones(4, WIDTH, dtype=torch.double)
    x_ND[1, 1] = float("nan")
    with pytest.raises(ValueError, match="logits are not finite"):
        layer(4, 1.0)(x_ND)


def test_one_expert_with_room_for_all_is_the_dense_layer_times_certainty() -> None:
    """The softmax of one logit is 1: the same numbers as two matrices with ReLU between them."""
    asked = layer(1, 1.0)
    x_ND = torch.randn(9, WIDTH, dtype=torch.double)
    torch.testing.assert_close(asked(x_ND)[0], torch.relu(x_ND @ asked.rise_EDF[0]) @ asked.fall_EFD[0])


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, ...]:
    return TRACK.make_inputs(CASE, 0, "cpu")


@pytest.mark.parametrize("model", [dense(CASE)(0), switch(CASE, 4)(0)], ids=["dense", "switch"])
def test_no_token_sees_what_follows(model: LanguageModel, batch: tuple[Tensor, ...]) -> None:
    """Neither by attention nor by an expert's room, which is given away in the order of the tokens."""
    tokens_BT, _ = batch
    changed_BT = tokens_BT.clone()
    changed_BT[-1, 7:] = (tokens_BT[-1, 7:] + 1) % text_of(CASE).characters
    with torch.no_grad():
        before, after = model(tokens_BT).logits_BTV, model(changed_BT).logits_BTV
    torch.testing.assert_close(before[-1, :7], after[-1, :7])
    assert not torch.allclose(before[-1, 7:], after[-1, 7:])


def test_every_second_layer_is_switched_and_a_token_costs_the_router_more() -> None:
    plain, routed = dense(CASE)(0), switch(CASE, 8)(0)
    assert [isinstance(block.feed_forward, Switch) for block in routed.blocks] == [False, True, False, True]
    assert routed.operations() - plain.operations() == 2 * 2 * CASE.width * 8
    wide = dense(CASE, times=4)(0)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (switch(CASE, 4)(0), wide)]
    assert sizes[0] - sizes[1] == 2 * CASE.width * 4


def test_the_counted_operations_are_those_of_the_products(batch: tuple[Tensor, ...]) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = dense(CASE)(0)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(batch[0])
    # Plain products are of all pairs of positions; a causal layer needs half of them.
    unseen = CASE.layers * 2 * CASE.length * CASE.width
    assert counter.get_total_flops() == CASE.tokens * (model.operations() + unseen)


@pytest.mark.parametrize(("router_dtype", "expected"), [(None, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_under_autocast_experts_compute_in_bf16_and_the_router_in_what_it_is_told(
    router_dtype: torch.dtype | None, expected: torch.dtype, batch: tuple[Tensor, ...]
) -> None:
    model = switch(CASE, 4, router_dtype)(0)
    inside: list[torch.dtype] = []
    applied = model.blocks[1].register_forward_hook(lambda module, given, found: inside.append(found[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(model, *batch)
        routed = model(batch[0]).routed
    applied.remove()
    value.backward()
    assert {found.logits_NE.dtype for found in routed} == {expected}
    assert inside[0] == torch.float32  # the residual
    assert value.dtype == torch.float32
    switched = model.blocks[1].feed_forward
    assert switched.rise_EDF.grad.dtype == torch.float32
    assert float(switched.router_ED.grad.abs().sum()) > 0


def test_the_auxiliary_losses_of_all_switch_layers_are_added(batch: tuple[Tensor, ...]) -> None:
    model = switch(CASE, 4)(0)
    with torch.no_grad():
        logits_BTV, routed = model(batch[0])
        nats = -logits_BTV.log_softmax(-1).gather(-1, batch[1].unsqueeze(-1)).mean()
        added = 0.0
        for found in routed:
            probability_NE = found.logits_NE.softmax(-1)
            share_E = torch.bincount(found.logits_NE.argmax(-1), minlength=4) / CASE.tokens
            added += 1e-2 * 4 * float((share_E * probability_NE.mean(0)).sum())
            added += 1e-3 * float(found.logits_NE.exp().sum(-1).log().square().mean())
        assert len(routed) == 2
        assert float(loss(model, *batch)) == pytest.approx(float(nats) + added, rel=1e-5)


@pytest.mark.parametrize("experts", [1, 0, -1, 2.5])
def test_a_switch_model_has_two_experts_or_more(experts: int) -> None:
    with pytest.raises(ValueError, match=f"experts is {experts}"):
        switch(CASE, experts)


@pytest.mark.parametrize(
    "content",
    [b"hello world. " * 9, b"hello world. " * 100, b"\xff\xfe\x00" * 300],
    ids=["no window", "no batch", "binary"],
)
def test_a_text_of_no_use_is_no_crash(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").write_bytes(content)
    monkeypatch.setenv("ARCHBENCH_DATA", str(tmp_path))
    with pytest.raises(Unavailable, match="mine"):
        dense(SwitchCase("mine"))


def test_a_text_that_is_nowhere_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARCHBENCH_DATA", raising=False)
    with pytest.raises(Unavailable, match="no-such-text"):
        switch(SwitchCase("no-such-text"), 4)
