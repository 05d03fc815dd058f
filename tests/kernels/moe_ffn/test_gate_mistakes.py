"""The gate of the mixture of experts: wrong answers of every kind are refused, each in a small case that shows it."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from moe_mixtures import in_turn, judged, table
from torch import Tensor
from torch.nn import functional as F

from archbench.checks import Wrong
from archbench.harness.gate import Examiner
from archbench.kernels.moe_ffn import TRACK, Z_WEIGHT, MoeCase, _routing
from archbench.kernels.moe_ffn._layers import expert
from archbench.kernels.moe_ffn._routing import Routing
from archbench.track import Contender

TOPK = MoeCase(2, 17, 24, 20, 4, backward=True)
GSHARD = MoeCase(2, 29, 20, 12, 4, router="gshard", capacity_factor=1.0, skew=1.0, backward=True)
SWITCH = MoeCase(2, 31, 16, 12, 4, top_k=1, router="switch", capacity_factor=1.25, skew=1.0, backward=True)
CHOICE = MoeCase(2, 21, 16, 12, 4, router="expert_choice", capacity_factor=0.5, backward=True)
HALF = MoeCase(3, 40, 32, 48, 8, dtype="bf16", backward=True)
FORWARD = replace(TOPK, backward=False)
# Nobody is dropped, and there are so many tokens that a loss which is a mean moves each of them by very little.
MANY = MoeCase(8, 256, 32, 8, 8, top_k=1, router="switch", backward=True)
MANY_HALF = replace(MANY, dim=256, dtype="bf16")

Change = Callable[[MoeCase, Routing], Routing]


def rerouted(change: Change) -> Any:
    return partial(in_turn, route=lambda case, *given: change(case, _routing.route(case, *given)))


def experts(one: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Any:
    return partial(in_turn, one=one)


def reweighted(change: Callable[[Tensor], Tensor]) -> Any:
    return rerouted(lambda case, found: found._replace(weight_A=change(found.weight_A)))


def without(pick: Callable[[Tensor], Tensor]) -> Any:
    """One assignment is forgotten."""

    def forget(weight_A: Tensor) -> Tensor:
        kept = torch.ones_like(weight_A)
        kept[pick(weight_A)] = 0
        return weight_A * kept

    return reweighted(forget)


def not_scaled(case: MoeCase, x: Tensor, router: Tensor, uniform: Tensor) -> Routing:
    found = _routing.route(case, x, router, uniform)
    p_NE = _routing.logits_of(x, router).softmax(-1).flatten(0, 1)
    return found._replace(weight_A=p_NE[found.token_A, found.expert_A])


def scaled_after_dropping(case: MoeCase, found: Routing) -> Routing:
    sums = table(case, found).sum(-1)
    return found._replace(weight_A=found.weight_A / sums[found.token_A])


def with_capacity(case: MoeCase, *given: Tensor, more: int) -> Routing:
    class Other(MoeCase):
        @property
        def capacity(self) -> int:
            return case.capacity + more

    return _routing.route(Other(**{name: getattr(case, name) for name in case.__dataclass_fields__}), *given)


def in_another_order(case: MoeCase, x: Tensor, router: Tensor, uniform: Tensor, *, order: str) -> Routing:
    """GShard's counters in a loop. ``tokens``: each token's choices together. ``undrawn``: as algorithm 1 prints it."""
    found = _routing.route(case, x, router, uniform)
    best = _routing.logits_of(x, router).topk(2)
    weights = best.values.softmax(-1)
    kept: list[tuple[int, int, Tensor]] = []
    dropped = 0
    for b in range(case.groups):
        counters = [0] * case.experts
        turns = [(t, k) for k in (0, 1) for t in range(case.length)]
        for t, k in sorted(turns) if order == "tokens" else turns:
            e, drawn = int(best.indices[b, t, k]), k == 0 or bool(uniform[b, t] < 2 * weights[b, t, 1])
            if drawn and counters[e] < case.capacity:
                kept.append((e, b * case.length + t, weights[b, t, k]))
            dropped += drawn and counters[e] >= case.capacity
            counters[e] += drawn or order == "undrawn"
    kept.sort(key=lambda row: row[:2])
    return found._replace(
        token_A=torch.tensor([token for _, token, _ in kept]),
        weight_A=torch.stack([weight for *_, weight in kept]),
        counts_E=torch.bincount(torch.tensor([e for e, *_ in kept]), minlength=case.experts),
        dropped=torch.tensor(dropped),
    )


def evenly(case: MoeCase, found: Routing) -> Routing:
    """The sorted list is cut into equal pieces."""
    counts = torch.full_like(found.counts_E, len(found.token_A) // case.experts)
    counts[-1] += len(found.token_A) - counts.sum()
    return found._replace(counts_E=counts)


def rounded(to: Callable[[Tensor], Tensor]) -> Any:
    """The experts' operands are rounded first."""
    return experts(lambda x, w_in, w_out: expert(to(x), to(w_in), to(w_out)).to(x.dtype))


class Tf32(torch.autograd.Function):
    """10 bits of mantissa are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def gradients_in_tf32(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    exact, coarse = expert(x, w_in, w_out), expert(*map(Tf32.apply, (x, w_in, w_out)))
    return exact.detach() + coarse - coarse.detach()


def without_the_z_loss(case: MoeCase, *given: Tensor) -> Routing:
    logits = _routing.logits_of(*given[:2])
    found = _routing.route(case, *given)
    return found._replace(loss=found.loss - Z_WEIGHT * logits.logsumexp(-1).square().mean())


def without_the_loss_of(name: str) -> Any:
    """The loss's gradient does not reach this input, everything else is right."""

    def route(case: MoeCase, x: Tensor, router: Tensor, uniform: Tensor) -> Routing:
        cut = {"x": (x.detach(), router), "router": (x, router.detach()), "both": (x.detach(), router.detach())}[name]
        return _routing.route(case, x, router, uniform)._replace(loss=_routing.route(case, *cut, uniform).loss)

    return partial(in_turn, route=route)


def answers(change: Callable[..., Any]) -> Any:
    """What is returned is changed at the end: ``change(case, x, answer)``."""
    return lambda case, *given: change(case, given[0], in_turn(case, *given))


MISTAKES: dict[str, tuple[MoeCase, Any]] = {
    "the last assignment is forgotten": (FORWARD, without(lambda weight: torch.tensor(-1))),
    "the lightest assignment is forgotten": (FORWARD, without(lambda weight: weight.argmin())),
    "the lightest assignment of many is forgotten": (replace(MANY, backward=False), without(lambda w: w.argmin())),
    "probabilities are not scaled": (FORWARD, partial(in_turn, route=not_scaled)),
    "scaled to what is kept": (GSHARD, rerouted(scaled_after_dropping)),
    "top-1 is scaled to 1": (SWITCH, reweighted(torch.ones_like)),
    "room for one more (gshard)": (GSHARD, partial(in_turn, route=partial(with_capacity, more=1))),
    "room for one less (gshard)": (GSHARD, partial(in_turn, route=partial(with_capacity, more=-1))),
    "room for one more (switch)": (SWITCH, partial(in_turn, route=partial(with_capacity, more=1))),
    "room for one more (expert choice)": (CHOICE, partial(in_turn, route=partial(with_capacity, more=1))),
    "second choices do not wait": (GSHARD, partial(in_turn, route=partial(in_another_order, order="tokens"))),
    "who is not drawn takes a place": (GSHARD, partial(in_turn, route=partial(in_another_order, order="undrawn"))),
    "all second choices are drawn": (GSHARD, lambda case, *given: in_turn(case, *given[:4], 0 * given[4])),
    "an expert's tokens go to the next": (
        FORWARD,
        rerouted(lambda case, found: found._replace(counts_E=found.counts_E.roll(1))),
    ),
    "loads are taken to be equal": (FORWARD, rerouted(evenly)),
    "weights are squared": (FORWARD, reweighted(torch.square)),
    "weights get no gradient": (TOPK, reweighted(torch.Tensor.detach)),
    "weights get no gradient (switch)": (SWITCH, reweighted(torch.Tensor.detach)),
    "weights get no gradient (bf16)": (HALF, reweighted(torch.Tensor.detach)),
    "gate and up are exchanged": (FORWARD, experts(lambda x, w_in, w_out: expert(x, w_in.roll(20, 0), w_out))),
    "gelu": (FORWARD, experts(lambda x, w, v: (F.gelu(x @ w[:20].T) * (x @ w[20:].T)) @ v)),
    "the gate is a constant": (TOPK, experts(lambda x, w, v: (F.silu(x @ w[:20].T).detach() * (x @ w[20:].T)) @ v)),
    "experts in bf16": (FORWARD, rounded(torch.Tensor.bfloat16)),
    "experts in tf32": (FORWARD, rounded(Tf32.apply)),
    "gradients in tf32": (TOPK, experts(gradients_in_tf32)),
    "no gradient of the loss": (GSHARD, without_the_loss_of("both")),
    "no gradient of the loss (switch)": (SWITCH, without_the_loss_of("both")),
    "no gradient of the loss by x": (MANY, without_the_loss_of("x")),
    "no gradient of the loss by the router": (MANY, without_the_loss_of("router")),
    "no gradient of the loss by x (bf16)": (MANY_HALF, without_the_loss_of("x")),
    "no gradient of the loss by the router (bf16)": (MANY_HALF, without_the_loss_of("router")),
    "no loss": (GSHARD, rerouted(lambda case, found: found._replace(loss=0 * found.loss))),
    "a loss of who was kept": (
        SWITCH,
        rerouted(lambda case, found: found._replace(loss=found.loss * len(found.token_A) / case.tokens)),
    ),
    "the z-loss is forgotten": (SWITCH, partial(in_turn, route=without_the_z_loss)),
    "drops are not counted": (GSHARD, rerouted(lambda case, found: found._replace(dropped=0 * found.dropped))),
    "drops are not counted (switch)": (SWITCH, rerouted(lambda case, found: found._replace(dropped=0 * found.dropped))),
    "who is nobody's is not counted": (CHOICE, rerouted(lambda case, found: found._replace(dropped=0 * found.dropped))),
    "a count in float": (GSHARD, rerouted(lambda case, found: found._replace(dropped=found.dropped.float()))),
    "a count of a group": (GSHARD, rerouted(lambda case, found: found._replace(dropped=found.dropped.view(1)))),
    "who is dropped passes as it is": (
        replace(SWITCH, backward=False),
        answers(lambda case, x, said: (torch.where(said[0] == 0, x, said[0]), *said[1:])),
    ),
    "y alone": (replace(SWITCH, backward=False), answers(lambda case, x, said: said[0])),
    "a loss that is a number": (
        replace(SWITCH, backward=False),
        answers(lambda case, x, said: (said[0], float(said[1]), said[2])),
    ),
    "another precision": (replace(HALF, backward=False), answers(lambda case, x, said: said.float())),
    "tokens in a row": (FORWARD, answers(lambda case, x, said: said.flatten(0, 1))),
    "not a number": (FORWARD, answers(lambda case, x, said: said + 0 * (x - x) / (x - x))),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_answers_are_refused(mistake: str) -> None:
    case, call = MISTAKES[mistake]
    for seed in range(3):
        with pytest.raises(Wrong):
            judged(case, call, seed)


@pytest.mark.parametrize("kept", ["routing", "answer"])
def test_what_was_right_for_the_first_inputs_is_refused(kept: str) -> None:
    """Buffers of an earlier call: its routing, or what it returned."""
    before: dict[str, Any] = {}

    def stale(case: MoeCase, *given: Tensor) -> Any:
        def route(*asked: Any) -> Routing:
            found: Routing = before.setdefault("routing", _routing.route(*asked))
            return found

        now = in_turn(case, *given, route=route if kept == "routing" else _routing.route)
        return before.setdefault("answer", now) if kept == "answer" else now

    contender: Contender[MoeCase] = Contender(build=lambda case: partial(stale, case))
    work = TRACK.workload(FORWARD, contender.build(FORWARD))
    examiner = Examiner(TRACK, FORWARD, contender, work, "cpu", "stale")
    examiner.ask_once(0)
    before.clear()
    with pytest.raises(Wrong):
        examiner.examine(0)
