"""Who answers whom: routers, capacities, auxiliary losses and the count of who found no room.

All routers end in one form, ``Routing``: a flat list of the assignments that are kept, sorted by expert and within an
expert by token. What follows (a loop over experts, a grouped product, an exchange between ranks) needs no more.

Letters: B groups, T tokens of a group, N = B T, D width, E experts, K experts of a token, C capacity, A assignments.

Source: Lepikhin et al. 2020, arXiv:2006.16668, algorithm 1; Fedus et al. 2021, arXiv:2101.03961, equations 4 to 6; Zoph
et al. 2022, arXiv:2202.08906, equation 5; Zhou et al. 2022, arXiv:2202.09368
"""

from __future__ import annotations

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
        return torch.repeat_interleave(torch.arange(len(self.counts_E), device=self.token_A.device), self.counts_E)


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
    """Routing of the tokens by the case's router. Raises ValueError where the logits are not finite."""
    return routing(case, logits_of(x_BTD, router_ED), uniform_BT)


def routing(case: MoeCase, logits_BTE: Tensor, uniform_BT: Tensor) -> Routing:
    """The same from logits. Raises ValueError naming ``logits``, ``uniform`` or ``capacity``."""
    _checked(case, logits_BTE, uniform_BT)
    probabilities_BTE = logits_BTE.softmax(-1)
    if case.router == "expert_choice":
        return _experts_choose(case, probabilities_BTE)
    choice = _tokens_choose(case, probabilities_BTE, uniform_BT)
    loss = _loss(case, logits_BTE, probabilities_BTE, choice.expert_BTK[..., 0])
    if case.capacity >= case.length and choice.wanted_BTK is None:
        return _everyone(case, choice, loss)
    return _within(case, choice, loss)


def _checked(case: MoeCase, logits_BTE: Tensor, uniform_BT: Tensor) -> None:
    shape = (case.groups, case.length, case.experts)
    if tuple(logits_BTE.shape) != shape:
        raise ValueError(f"logits have shape {tuple(logits_BTE.shape)}, the case wants {shape}")
    if case.router == "gshard" and tuple(uniform_BT.shape) != shape[:2]:
        raise ValueError(f"uniform has shape {tuple(uniform_BT.shape)}, the case wants {shape[:2]}")
    if logits_BTE.device.type == "cpu" and not logits_BTE.isfinite().all():  # on a GPU the look would wait for it
        raise ValueError("logits are not finite: x or router hold NaN or infinity")


def _tokens_choose(case: MoeCase, probabilities_BTE: Tensor, uniform_BT: Tensor) -> Choice:
    best = probabilities_BTE.topk(case.top_k, dim=-1)
    if case.router == "switch":
        return Choice(best.indices, best.values, None)
    weights = best.values / best.values.sum(-1, keepdim=True)
    if case.router == "topk":
        return Choice(best.indices, weights, None)
    drawn_BT = uniform_BT < 2 * weights[..., 1]
    return Choice(best.indices, weights, torch.stack((torch.ones_like(drawn_BT), drawn_BT), dim=-1))


def _loss(case: MoeCase, logits_BTE: Tensor, probabilities_BTE: Tensor, first_BT: Tensor) -> Tensor:
    """E sum_e f_e P_e, the mean over groups; f the share of first choices, P the mean probability. 1 is balance."""
    if case.router == "topk":
        return logits_BTE.new_zeros(())
    share_BE = F.one_hot(first_BT, case.experts).to(probabilities_BTE.dtype).mean(1)
    loss = case.experts * (share_BE * probabilities_BTE.mean(1)).sum(-1).mean()
    return loss + Z_WEIGHT * logits_BTE.logsumexp(-1).square().mean() if case.router == "switch" else loss


def _everyone(case: MoeCase, choice: Choice, loss: Tensor) -> Routing:
    """All assignments are kept."""
    expert_A = choice.expert_BTK.flatten()
    order_A = expert_A.argsort(stable=True)
    slots = torch.empty_like(order_A)
    slots[order_A] = torch.arange(len(order_A), device=order_A.device)
    return Routing(
        token_A=order_A // case.top_k,
        weight_A=choice.weight_BTK.flatten()[order_A],
        counts_E=torch.bincount(expert_A, minlength=case.experts),
        loss=loss,
        dropped=expert_A.new_zeros(()),
        slots_NK=slots.view(case.tokens, case.top_k),
    )


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
        counts_E=torch.bincount(expert_BTK.flatten()[at_A], minlength=case.experts),
        loss=loss,
        dropped=asked - kept_BTK.sum(),
    )


def _experts_choose(case: MoeCase, probabilities_BTE: Tensor) -> Routing:
    """Each expert takes the C likeliest tokens of every group."""
    best = probabilities_BTE.transpose(1, 2).topk(case.capacity, dim=-1)  # (B, E, C)
    first_B11 = case.length * torch.arange(case.groups, device=best.indices.device).view(-1, 1, 1)
    token_EM = (best.indices + first_B11).transpose(0, 1).flatten(1)
    order_EM = token_EM.argsort(-1)
    token_A = token_EM.gather(1, order_EM).flatten()
    return Routing(
        token_A=token_A,
        weight_A=best.values.transpose(0, 1).flatten(1).gather(1, order_EM).flatten(),
        counts_E=torch.full((case.experts,), token_EM.shape[1], device=token_A.device),
        loss=probabilities_BTE.new_zeros(()),
        dropped=(torch.bincount(token_A, minlength=case.tokens) == 0).sum(),
    )
