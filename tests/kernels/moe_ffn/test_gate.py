"""The gate of the mixture of experts: right answers in any order of summation pass, and nothing has to be nothing."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from moe_mixtures import in_turn, judged, table
from torch import Tensor
from torch.nn import functional as F

from archbench.checks import Wrong, flatten, to_float64
from archbench.kernels.moe_ffn import TRACK, MoeCase, _gate, _routing, _workload
from archbench.kernels.moe_ffn._layers import answer

# The measured cases on a CPU with the same tokens, experts and routers, and with narrow experts.
NARROW = tuple(
    dict.fromkeys(
        replace(case, dim=32, hidden=24) for case in TRACK.bench_cases if case.dim == 256 and case.groups <= 8
    )
)


def by_einsum(case: MoeCase, x: Tensor, router: Tensor, w_in: Tensor, w_out: Tensor, uniform: Tensor) -> Any:
    """All experts for all tokens, weighted before the second product, which then sums over experts and hidden units."""
    routing = _routing.route(case, x, router, uniform)
    gate, up = torch.einsum("nd,efd->nef", x.flatten(0, 1), w_in).chunk(2, -1)
    hidden = (F.silu(gate) * up * table(case, routing).unsqueeze(-1)).to(x.dtype)
    return answer(case, torch.einsum("neh,ehd->nd", hidden, w_out), routing)


def one_by_one(left: Tensor, right: Tensor) -> Tensor:
    """A product whose terms are added one after the other: what rounds most."""
    total = torch.zeros(left.shape[0], right.shape[1], dtype=left.dtype)
    for k in range(left.shape[1]):
        total = total + left[:, k : k + 1] * right[k : k + 1]
    return total


class OneByOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return one_by_one(left, right)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        return one_by_one(grads[0], right.T), one_by_one(left.T, grads[0])


def in_single_steps(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    gate, up = OneByOne.apply(x, w_in.T).chunk(2, -1)
    said: Tensor = OneByOne.apply(F.silu(gate) * up, w_out)
    return said


def used(case: MoeCase, call: Any, seed: int) -> float:
    """The largest share of the bound."""
    inputs = TRACK.make_inputs(case, seed, "cpu")
    found = flatten(TRACK.workload(case, partial(call, case))(*inputs)).values()
    wanted = list(flatten(_gate.reference(case, *inputs)).values())
    shares = [0.0]
    for name, got, want in zip(_workload.names(case), found, wanted, strict=True):
        if name not in ("loss", "dropped"):
            right = to_float64(want)
            off, allowed = abs(to_float64(got) - right), _gate.bound(case, name, inputs, wanted[0], right)
            shares.append(float((off / (allowed + (allowed == 0))).max()))
    return max(shares)


FORMS = {
    "every expert in turn": in_turn,
    "one product over experts": by_einsum,
    "one by one": partial(in_turn, one=in_single_steps),
}


# A sum that is rounded to bf16 after every term is not a right answer.
ASKED = [(case, form) for case in TRACK.test_cases for form in FORMS if (case.dtype, form) != ("bf16", "one by one")]


@pytest.mark.parametrize(("case", "form"), ASKED, ids=lambda value: getattr(value, "slug", value))
def test_right_answers_pass_with_room_for_any_seed(case: MoeCase, form: str) -> None:
    for seed in range(5):
        judged(case, FORMS[form], seed)
        assert used(case, FORMS[form], seed) <= 0.75


@pytest.mark.parametrize("case", NARROW, ids=lambda case: case.slug)
def test_right_answers_pass_at_the_measured_numbers_of_tokens(case: MoeCase) -> None:
    judged(case, in_turn)
    judged(case, by_einsum)


SWITCH = MoeCase(2, 31, 16, 12, 4, top_k=1, router="switch", capacity_factor=1.25, skew=1.0)


def test_who_is_dropped_has_an_answer_of_exactly_nothing() -> None:
    case = SWITCH
    inputs = TRACK.make_inputs(case, 0, "cpu")
    y, loss, dropped = TRACK.workload(case, partial(in_turn, case))(*inputs)
    nobody = (y == 0).all(-1)
    assert int(nobody.sum()) == int(dropped) > 0
    TRACK.gate(case, inputs, (y, loss, dropped))
    y[nobody] = 1e-30
    with pytest.raises(Wrong, match="expected 0"):
        TRACK.gate(case, inputs, (y, loss, dropped))


def test_an_expert_that_nobody_asked_has_gradients_of_exactly_nothing() -> None:
    case = MoeCase(1, 3, 16, 8, 7, backward=True)
    inputs = TRACK.make_inputs(case, 0, "cpu")
    y, dx, drouter, dw_in, dw_out = TRACK.workload(case, partial(in_turn, case))(*inputs)
    idle = (dw_in == 0).flatten(1).all(1)
    assert idle.any()
    TRACK.gate(case, inputs, (y, dx, drouter, dw_in, dw_out))
    dw_in[idle] = 1e-30
    with pytest.raises(Wrong, match=r"^dw_in.*expected 0"):
        TRACK.gate(case, inputs, (y, dx, drouter, dw_in, dw_out))
