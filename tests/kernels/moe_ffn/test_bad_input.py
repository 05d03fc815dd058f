"""What routers are given wrong: refused by the argument's name, or, where nobody looks, seen in the answer."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor

from archbench.discovery import load_contender
from archbench.kernels.moe_ffn import ROUTERS, MoeCase, _routing
from archbench.kernels.moe_ffn._layers import expert_by_expert
from archbench.kernels.moe_ffn._routing import route, routing


def given(router: str = "topk", **changes: Any) -> tuple[MoeCase, dict[str, Tensor]]:
    factor = {"topk": None, "expert_choice": 1.0}.get(router, 1.25)
    case = MoeCase(2, 6, 5, 3, 4, top_k=1 if router == "switch" else 2, router=router, capacity_factor=factor)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "x_BTD": torch.randn(2, 6, 5, generator=generator),
        "router_ED": torch.randn(4, 5, generator=generator),
        "uniform_BT": torch.rand(2, 6, generator=generator),
    }
    return case, inputs | changes


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["x_BTD", "router_ED"])
def test_what_is_not_finite_is_refused_by_every_router(router: str, value: float, name: str) -> None:
    case, inputs = given(router)
    inputs[name].view(-1)[7] = value
    with pytest.raises(ValueError, match="logits are not finite: x or router hold NaN, infinity"):
        route(case, **inputs)


def test_large_logits_are_finite_though_their_sum_is_not() -> None:
    case, inputs = given()
    logits = torch.tensor([3e38, 2e38, 0.0, -3e38]).expand(2, 6, 4)
    found = routing(case, logits, inputs["uniform_BT"])
    assert found.counts_E.tolist() == [12, 12, 0, 0]
    assert found.weight_A.tolist() == 12 * [1.0] + 12 * [0.0]


@pytest.mark.parametrize(("name", "said"), [("x_BTD", "x"), ("router_ED", "router"), ("uniform_BT", "uniform")])
@pytest.mark.parametrize("change", ["longer", "shorter", "transposed", "flat", "empty"])
def test_a_wrong_shape_is_refused_by_name(name: str, said: str, change: str) -> None:
    case, inputs = given("gshard")
    value = inputs[name]
    inputs[name] = {
        "longer": torch.cat((value, value[:1])),
        "shorter": value[:1],
        "transposed": value.transpose(0, 1),
        "flat": value.flatten(),
        "empty": value[:0],
    }[change]
    with pytest.raises(ValueError, match=rf"^{said} has shape \(.*\), the case wants \("):
        route(case, **inputs)


@pytest.mark.parametrize("name", ["w_in", "w_out"])
def test_weights_of_more_experts_than_the_router_knows_are_refused_by_name(name: str) -> None:
    case, inputs = given()
    weights = {"w_in": torch.zeros(4, 6, 5), "w_out": torch.zeros(4, 3, 5)}
    uniform = inputs.pop("uniform_BT")
    expert_by_expert(case, *inputs.values(), *weights.values(), uniform)
    weights[name] = torch.cat((weights[name], weights[name][:1]))
    with pytest.raises(ValueError, match=rf"^{name} has shape \(5, .*\), the case wants \(4, "):
        expert_by_expert(case, *inputs.values(), *weights.values(), uniform)


def test_logits_of_another_shape_are_refused() -> None:
    case, inputs = given()
    with pytest.raises(ValueError, match=r"^logits has shape \(2, 6, 3\), the case wants \(2, 6, 4\)"):
        routing(case, torch.zeros(2, 6, 3), inputs["uniform_BT"])


@pytest.mark.parametrize("value", [-0.001, 1.0, math.nan, math.inf])
def test_uniform_numbers_are_looked_at_where_they_are_used(value: float) -> None:
    case, inputs = given("gshard")
    inputs["uniform_BT"][1, 2] = value
    with pytest.raises(ValueError, match=r"^uniform goes from .*, must be within \[0, 1\)"):
        route(case, **inputs)
    case, _ = given("switch")
    route(case, **inputs)


def test_a_capacity_of_nothing_is_refused() -> None:
    """No MoeCase has one; a case of somebody else may."""

    class Roomless(MoeCase):
        @property
        def capacity(self) -> int:
            return 0

    case = Roomless(2, 6, 5, 3, 4, top_k=1, router="switch", capacity_factor=1.0)
    with pytest.raises(ValueError, match=r"^capacity is 0, must be at least 1"):
        routing(case, torch.zeros(2, 6, 4), torch.zeros(2, 6))


@pytest.mark.parametrize("router", ROUTERS)
def test_where_nobody_looks_what_is_not_a_number_is_seen_in_the_weights(
    router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the look would wait for the device: every answer of the token holds NaN."""
    case, inputs = given(router)
    monkeypatch.setattr(_routing, "_checked", lambda *_: None)
    inputs["x_BTD"][0, 0, 3] = math.nan
    found = route(case, **inputs)
    of_token = found.weight_A[found.token_A == 0]
    assert len(of_token)
    assert of_token.isnan().all()
    assert found.weight_A[found.token_A >= case.length].isfinite().all()  # the other group does not know


def test_where_nobody_looks_a_draw_that_is_not_a_number_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case, inputs = given("gshard")
    monkeypatch.setattr(_routing, "_checked", lambda *_: None)
    inputs["uniform_BT"][0, 0] = math.nan
    found = route(case, **inputs)
    assert found.weight_A[found.token_A == 0].isnan().all()
    assert found.weight_A[found.token_A > 0].isfinite().all()


@pytest.mark.parametrize(
    "contender", ["expert_loop", "sorted_grouped", "einsum_dispatch", "dense", "dense_equal_params"]
)
@pytest.mark.parametrize("name", ["w_in", "w_out"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_weights_of_another_shape_are_refused_by_name(contender: str, name: str, axis: int) -> None:
    case, inputs = given()
    call = load_contender("moe_ffn", contender).entry.build(case)  # type: ignore[union-attr]
    weights = {"w_in": torch.randn(4, 6, 5), "w_out": torch.randn(4, 3, 5)}
    weights[name] = torch.cat((weights[name], weights[name].narrow(axis, 0, 1)), axis)
    x, router, uniform = inputs.values()
    with pytest.raises(ValueError, match=f"^{name} has shape"):
        call(x, router, *weights.values(), uniform)
