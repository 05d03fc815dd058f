"""Who answers whom: routers, capacities, auxiliary losses and the count of who found no room.

All routers end in one form, ``Routing``: a flat list of the assignments that are kept, sorted by expert and within an
expert by token. What follows (a loop over experts, a grouped product, an exchange between ranks) needs no more.

A first choice that finds no room has used all of it: no second choice finds any either, whether it is counted or not. A
second expert that is not drawn takes no place, as in the authors' code (lingvo's ``Top2GatingOnLogits``); the loop that
algorithm 1 prints moves the counter for it, too, which would leave places empty that the draw is there to save.

What is not finite is refused on the CPU. On a GPU the look would make the host wait, so there NaN goes on into the
weights, and by them into y: a token's own logits and its uniform number reach all of its answers.

Letters: B groups, T tokens of a group, N = B T, D width, E experts, K experts of a token, C capacity, A assignments.

Source: Lepikhin et al. 2020, arXiv:2006.16668, algorithm 1; Fedus et al. 2021, arXiv:2101.03961, equations 4 to 6; Zoph
et al. 2022, arXiv:2202.08906, equation 5; Zhou et al. 2022, arXiv:2202.09368
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from archbench.kernels.moe_ffn import Z_WEIGHT, MoeCase


class Routing(NamedTuple):
    """The assignments that are kept, sorted by expert and within an expert by token."""

    token_A: Tensor  # int64, 0 to N - 1
    weight_A: Tensor  # float32 or float64, carries the router's gradient
    counts_E: Tensor  # int64: how many of them belong to each expert
    loss: Tensor  # scalar: auxiliary losses
    dropped: Tensor  # int64 scalar: who found no room
    slots_NK: Tensor | None = None  # where assignment (n, k) stands in the list; None where not all are in it

    @property
    def expert_A(self) -> Tensor:
        experts_E = torch.arange(len(self.counts_E), device=self.token_A.device)
        return torch.repeat_interleave(experts_E, self.counts_E, output_size=len(self.token_A))


class Choice(NamedTuple):
    """What tokens want, before anybody asks for room."""

    expert_BTK: Tensor  # int64
    weight_BTK: Tensor
    wanted_BTK: Tensor | None  # bool: not drawn at random means not wanted; None: all are


def logits_of(x_BTD: Tensor, router_ED: Tensor) -> Tensor:
    """(B, T, E), in float32 at least: a router that rounds more sends tokens elsewhere."""
    precise = torch.promote_types(x_BTD.dtype, torch.float32)
    return F.linear(x_BTD.to(precise), router_ED.to(precise))


def route(case: MoeCase, x_BTD: Tensor, router_ED: Tensor, uniform_BT: Tensor) -> Routing:
    """Routing of the tokens by the case's router. Raises ValueError naming the argument that is not what it takes."""
    shaped("x", x_BTD, (case.groups, case.length, case.dim))
    shaped("router", router_ED, (case.experts, case.dim))
    return routing(case, logits_of(x_BTD, router_ED), uniform_BT)


def routing(case: MoeCase, logits_BTE: Tensor, uniform_BT: Tensor) -> Routing:
    """The same from logits. Raises ValueError naming ``logits``, ``uniform`` or ``capacity``."""
    _checked(case, logits_BTE, uniform_BT)
    if case.router == "expert_choice":
        return _experts_choose(case, logits_BTE)
    # Once for choice and loss: what both need is kept for the backward pass once.
    probability_BTE = None if case.router == "topk" else logits_BTE.softmax(-1)
    choice = _tokens_choose(case, logits_BTE, probability_BTE, uniform_BT)
    loss = _loss(case, logits_BTE, probability_BTE, choice.expert_BTK[..., 0])
    if case.capacity >= case.length and choice.wanted_BTK is None:
        return _everyone(case, choice, loss)
    return _within(case, choice, loss)


def shaped(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError naming the argument where its shape is another."""
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, the case wants {shape}")


def _checked(case: MoeCase, logits_BTE: Tensor, uniform_BT: Tensor) -> None:
    shaped("logits", logits_BTE, (case.groups, case.length, case.experts))
    if case.capacity < 1:
        raise ValueError(f"capacity is {case.capacity}, must be at least 1: an expert without room answers nobody")
    on_cpu = logits_BTE.device.type == "cpu"  # on a GPU these looks would wait for it
    if on_cpu and not all(map(math.isfinite, _ends(logits_BTE))):
        raise ValueError("logits are not finite: x or router hold NaN, infinity or numbers too large")
    if case.router == "gshard":
        shaped("uniform", uniform_BT, (case.groups, case.length))
        lowest, highest = _ends(uniform_BT) if on_cpu else (0, 0)
        if not 0 <= lowest <= highest < 1:
            raise ValueError(f"uniform goes from {lowest:g} to {highest:g}, must be within [0, 1)")


def _ends(values: Tensor) -> tuple[float, float]:
    """Both are NaN where one value is. A tenth of the time of ``isfinite``."""
    lowest, highest = values.detach().aminmax()
    return float(lowest), float(highest)


def _tokens_choose(case: MoeCase, logits_BTE: Tensor, probability_BTE: Tensor | None, uniform_BT: Tensor) -> Choice:
    """By logits: of experts whose probabilities are too small for a float, one is likelier still."""
    best = logits_BTE.topk(case.top_k, dim=-1)
    if case.router == "switch":
        assert probability_BTE is not None
        return Choice(best.indices, probability_BTE.gather(-1, best.indices), None)
    weights = best.values.softmax(-1)  # probabilities scaled to a sum of 1
    if case.router == "topk":
        return Choice(best.indices, weights, None)
    weights = weights + 0 * uniform_BT.unsqueeze(-1)  # a number that is none is seen in y, and not as a draw
    drawn_BT = uniform_BT < 2 * weights[..., 1]
    return Choice(best.indices, weights, torch.stack((torch.ones_like(drawn_BT), drawn_BT), dim=-1))


def _loss(case: MoeCase, logits_BTE: Tensor, probability_BTE: Tensor | None, first_BT: Tensor) -> Tensor:
    """E sum_e f_e P_e, the mean over groups; f the share of first choices, P the mean probability. 1 is balance."""
    if probability_BTE is None:
        return logits_BTE.new_zeros(())
    share_BE = F.one_hot(first_BT, case.experts).to(logits_BTE.dtype).mean(1)
    loss = case.experts * (share_BE * probability_BTE.mean(1)).sum(-1).mean()
    return loss + Z_WEIGHT * logits_BTE.logsumexp(-1).square().mean() if case.router == "switch" else loss


def _everyone(case: MoeCase, choice: Choice, loss: Tensor) -> Routing:
    """All assignments are kept."""
    expert_A = choice.expert_BTK.flatten()
    order_A = expert_A.argsort(stable=True)
    slots_A = torch.empty_like(order_A).scatter_(0, order_A, torch.arange(len(order_A), device=order_A.device))
    return Routing(
        token_A=order_A // case.top_k,
        weight_A=choice.weight_BTK.flatten()[order_A],
        counts_E=counted(expert_A, case.experts),
        loss=loss,
        dropped=expert_A.new_zeros(()),
        slots_NK=slots_A.view(case.tokens, case.top_k),
    )


def counted(number_A: Tensor, bins: int) -> Tensor:
    """(bins,) int64: how often each number occurs. As ``bincount``, which makes the host of a GPU wait."""
    return number_A.new_zeros(bins).scatter_add_(0, number_A, torch.ones_like(number_A))


def _within(case: MoeCase, choice: Choice, loss: Tensor) -> Routing:
    """An expert takes C of a group: first choices before second ones, each in the order of the tokens."""
    expert_BTK, weight_BTK, wanted_BTK = choice
    one_hot_BKTE = F.one_hot(expert_BTK.transpose(1, 2), case.experts)
    if wanted_BTK is not None:
        one_hot_BKTE = one_hot_BKTE * wanted_BTK.transpose(1, 2).unsqueeze(-1)
    before_BKTE = one_hot_BKTE.flatten(1, 2).cumsum(1).view_as(one_hot_BKTE) - one_hot_BKTE
    before_BTK = (before_BKTE * one_hot_BKTE).sum(-1).transpose(1, 2)
    room_BTK = before_BTK < case.capacity
    kept_BTK = room_BTK if wanted_BTK is None else room_BTK & wanted_BTK
    asked = expert_BTK.numel() if wanted_BTK is None else wanted_BTK.sum()
    at_A = kept_BTK.flatten().nonzero().squeeze(-1)
    at_A = at_A[expert_BTK.flatten()[at_A].argsort(stable=True)]
    return Routing(
        token_A=at_A // case.top_k,
        weight_A=weight_BTK.flatten()[at_A],
        counts_E=counted(expert_BTK.flatten()[at_A], case.experts),
        loss=loss,
        dropped=asked - kept_BTK.sum(),
    )


def _experts_choose(case: MoeCase, logits_BTE: Tensor) -> Routing:
    """Each expert takes the C likeliest tokens of every group, by logarithms, which tell the unlikely ones apart."""
    best = logits_BTE.log_softmax(-1).transpose(1, 2).topk(case.capacity, dim=-1)  # (B, E, C)
    first_B11 = case.length * torch.arange(case.groups, device=best.indices.device).view(-1, 1, 1)
    token_EM = (best.indices + first_B11).transpose(0, 1).flatten(1)
    order_EM = token_EM.argsort(-1)
    token_A = token_EM.gather(1, order_EM).flatten()
    return Routing(
        token_A=token_A,
        weight_A=best.values.exp().transpose(0, 1).flatten(1).gather(1, order_EM).flatten(),
        counts_E=torch.full((case.experts,), token_EM.shape[1], device=token_A.device),
        loss=logits_BTE.new_zeros(()),
        dropped=(counted(token_A, case.tokens) == 0).sum(),
    )
