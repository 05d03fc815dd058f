"""A small language model whose feed-forward layers are dense or, every second one, a Switch layer.

A decoder: embedded characters, learned positions, pre-norm blocks of causal attention and feed-forward layer, a head. A
feed-forward layer is two matrices with ReLU between them, without biases. A Switch layer has E of them: a router in
float32 sends each token to the likeliest one, whose answer is weighted by its probability. An expert takes so many
tokens of a batch, in their order; whom it has no room for is counted, and only the residual carries that token on.
Tokens are gathered by expert, each expert multiplies its contiguous rows, and the answers are written back to where the
tokens stand: no product is padded, and no zero is multiplied.

What goes into the feed-forward layers' place is a constructor argument; all else is the same for every contender.

Letters: B batch, T length, N = B T tokens, D width, H heads, F hidden width, V characters, E experts, A tokens that are
kept, M of them of one expert.

Source: Fedus et al. 2021, Switch Transformers, arXiv:2101.03961; Press et al. 2021, ALiBi, arXiv:2108.12409
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.profiler import record_function

from archbench.kernels.moe_ffn import MoeCase
from archbench.kernels.moe_ffn._routing import Routing, routing
from archbench.models.switch_lm import SwitchCase
from archbench.models.switch_lm._text import text_of
from archbench.models.train import seeded

INITIAL_SCALE = 0.1  # variance of a matrix times its inputs; the paper's tenth of the usual 1, for stability
EMBEDDING_STD = 0.02

# Ranges that a trace shows. What is allocated in the first two and kept for the backward pass is the memory of routing.
ROUTER, DISPATCH, EXPERTS, COMBINE = (f"switch: {part}" for part in ("router", "dispatch", "experts", "combine"))

FeedForwardOf = Callable[[], nn.Module]


class Routed(NamedTuple):
    """What one Switch layer did with a batch."""

    logits_NE: Tensor
    routing: Routing


class Output(NamedTuple):
    """Logits of the next characters, and what the Switch layers did, first to last."""

    logits_BTV: Tensor
    routed: list[Routed]


def matrix(*shape: int, inputs: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * math.sqrt(INITIAL_SCALE / inputs))


class Linear(nn.Module):
    """``x W^T``, with the paper's initial weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = matrix(outputs, inputs, inputs=inputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Attention(nn.Module):
    """Causal attention of H heads, for each of which what is further back counts less, as in ALiBi.

    The paper's model (T5) learns such biases. With learned positions alone, a run here spends a third of its steps on
    finding out which character comes before.
    """

    bias_1HTT: Tensor

    def __init__(self, length: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        slope_H11 = 2.0 ** (-8 / heads * torch.arange(1, heads + 1)).view(-1, 1, 1)
        ahead_TT = torch.arange(length) - torch.arange(length).unsqueeze(1)
        bias_HTT = (slope_H11 * ahead_TT).masked_fill(ahead_TT > 0, -math.inf)
        self.register_buffer("bias_1HTT", bias_HTT.unsqueeze(0), persistent=False)  # fused attention takes four axes
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x_BTD).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias_1HTT)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Dense(nn.Module):
    """One feed-forward layer for all tokens."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.rise = Linear(width, hidden)
        self.fall = Linear(hidden, width)
        self.operations = 4 * width * hidden  # of a token's forward pass

    def forward(self, x_ND: Tensor) -> tuple[Tensor, None]:
        return self.fall(F.relu(self.rise(x_ND))), None


class Switch(nn.Module):
    """E feed-forward layers, of which a token meets one. ``router_dtype`` is what it is chosen in."""

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        capacity_factor: float,
        router_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.experts = experts
        self.capacity_factor = capacity_factor
        self.router_dtype = router_dtype
        self.router_ED = matrix(experts, width, inputs=width)
        self.rise_EDF = matrix(experts, width, hidden, inputs=width)
        self.fall_EFD = matrix(experts, hidden, width, inputs=hidden)
        self.operations = 4 * width * hidden + 2 * width * experts  # of a token's forward pass that is not dropped

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Routed]:
        device = x_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_ND.dtype
        with torch.autocast(device, enabled=False):
            with record_function(ROUTER):
                routed = self.route(x_ND)
                found = routed.routing
                weight_A = found.weight_A.to(dtype)
            y_ND = Experts.apply(
                x_ND.to(dtype),
                weight_A,
                self.rise_EDF.to(dtype),
                self.fall_EFD.to(dtype),
                found.token_A,
                found.counts_E.tolist(),
            )
        return y_ND, routed

    def route(self, x_ND: Tensor) -> Routed:
        """Who answers each token. Raises ValueError where logits are not finite or a size makes no sense."""
        dtype = self.router_dtype or torch.promote_types(x_ND.dtype, torch.float32)
        logits_NE = F.linear(x_ND.to(dtype), self.router_ED.to(dtype))
        # One group: the whole batch shares the experts' room, as the tokens of one device do in the paper.
        tokens, width = x_ND.shape
        asked = MoeCase(1, tokens, width, 1, self.experts, 1, "switch", self.capacity_factor)
        return Routed(logits_NE, routing(asked, logits_NE.unsqueeze(0), logits_NE.new_empty(0)))


class Experts(torch.autograd.Function):
    """Gather tokens by expert, two products for each expert's rows, weigh, and write back; zeros where nobody answers.

    Autograd of the same steps would pad each expert's gradient to all experts, and add rows one by one where they can
    be copied: a token stands in the list at most once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_A: Tensor,
        rise_EDF: Tensor,
        fall_EFD: Tensor,
        token_A: Tensor,
        counts: Sequence[int],
    ) -> Tensor:
        with record_function(DISPATCH):
            x_AD = x_ND.index_select(0, token_A)
            y_AD = torch.empty_like(x_AD)  # where a dense layer's answer is not kept, the weights' gradient needs it
        with record_function(EXPERTS):
            h_AF = x_AD.new_empty(len(x_AD), rise_EDF.shape[2])
            for rise_DF, x_MD, h_MF in zip(rise_EDF, x_AD.split(counts), h_AF.split(counts), strict=True):
                torch.mm(x_MD, rise_DF, out=h_MF)
            h_AF.relu_()
            for fall_FD, h_MF, y_MD in zip(fall_EFD, h_AF.split(counts), y_AD.split(counts), strict=True):
                torch.mm(h_MF, fall_FD, out=y_MD)
        ctx.save_for_backward(x_AD, h_AF, y_AD, weight_A, rise_EDF, fall_EFD, token_A)
        ctx.counts, ctx.tokens = counts, len(x_ND)
        with record_function(COMBINE):
            return torch.zeros_like(x_ND).index_copy_(0, token_A, y_AD * weight_A.unsqueeze(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_AD, h_AF, y_AD, weight_A, rise_EDF, fall_EFD, token_A = ctx.saved_tensors
        dy_AD = dy_ND.index_select(0, token_A)
        dweight_A = torch.linalg.vecdot(dy_AD, y_AD)
        dy_AD *= weight_A.unsqueeze(-1)
        dh_AF, dx_AD = torch.empty_like(h_AF), torch.empty_like(x_AD)
        drise_EDF, dfall_EFD = torch.empty_like(rise_EDF), torch.empty_like(fall_EFD)
        parts = [part.split(ctx.counts) for part in (dy_AD, h_AF, dh_AF)]
        for fall_FD, dfall_FD, dy_MD, h_MF, dh_MF in zip(fall_EFD, dfall_EFD, *parts, strict=True):
            torch.mm(h_MF.T, dy_MD, out=dfall_FD)
            torch.mm(dy_MD, fall_FD.T, out=dh_MF)
        dh_AF = torch.ops.aten.threshold_backward(dh_AF, h_AF, 0)
        parts = [part.split(ctx.counts) for part in (dh_AF, x_AD, dx_AD)]
        for rise_DF, drise_DF, dh_MF, x_MD, dx_MD in zip(rise_EDF, drise_EDF, *parts, strict=True):
            torch.mm(x_MD.T, dh_MF, out=drise_DF)
            torch.mm(dh_MF, rise_DF.T, out=dx_MD)
        dx_ND = dx_AD.new_zeros(ctx.tokens, dx_AD.shape[1]).index_copy_(0, token_A, dx_AD)
        return dx_ND, dweight_A, drise_EDF, dfall_EFD, None, None


class Block(nn.Module):
    """``x + attention(norm(x))``, then the same with a feed-forward layer."""

    def __init__(self, case: SwitchCase, feed_forward: nn.Module) -> None:
        super().__init__()
        width = case.width
        self.mixing_norm = nn.LayerNorm(width)
        self.mixing = Attention(case.length, width, case.heads)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = feed_forward

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routed | None]:
        x_BTD = x_BTD + self.mixing(self.mixing_norm(x_BTD))
        y_ND, routed = self.feed_forward(self.norm(x_BTD).flatten(0, 1))
        return x_BTD + y_ND.view_as(x_BTD), routed


class LanguageModel(nn.Module):
    """``tokens_BT -> Output``. ``feed_forward()`` makes the layer of every second block, ``Dense`` is in the others."""

    def __init__(self, case: SwitchCase, characters: int, feed_forward: FeedForwardOf) -> None:
        super().__init__()
        self.characters = nn.Parameter(torch.randn(characters, case.width) * EMBEDDING_STD)
        self.positions_TD = nn.Parameter(torch.randn(case.length, case.width) * EMBEDDING_STD)
        self.blocks = nn.ModuleList(
            Block(case, feed_forward() if case.is_switched(layer) else Dense(case.width, case.hidden))
            for layer in range(case.layers)
        )
        self.norm = nn.LayerNorm(case.width)
        self.head = Linear(case.width, characters)

    def forward(self, tokens_BT: Tensor) -> Output:
        x_BTD = F.embedding(tokens_BT, self.characters) + self.positions_TD
        routed = []
        for block in self.blocks:
            x_BTD, found = block(x_BTD)
            if found is not None:
                routed.append(found)
        return Output(self.head(self.norm(x_BTD)), routed)

    def operations(self) -> int:
        """Of the products of a token's forward pass; attention looks at half of the length, as it is causal."""
        length, width = self.positions_TD.shape
        mixing = 8 * width**2 + 2 * length * width
        layers = sum(mixing + block.feed_forward.operations for block in self.blocks)
        return int(layers) + 2 * self.head.weight.numel()


@dataclass(frozen=True)
class Factory:
    """``factory(seed)`` is a model, on the CPU. Raises Unavailable where the text is nowhere."""

    case: SwitchCase
    feed_forward: FeedForwardOf
    is_baseline: bool = False

    def __post_init__(self) -> None:
        text_of(self.case)

    def __call__(self, seed: int) -> LanguageModel:
        with seeded(seed):
            return LanguageModel(self.case, text_of(self.case).characters, self.feed_forward)


def dense(case: SwitchCase, times: int = 1) -> Factory:
    """The model without experts; ``times`` widens the layers that are Switch layers elsewhere."""
    return Factory(case, lambda: Dense(case.width, times * case.hidden), is_baseline=times == 1)


def switch(case: SwitchCase, experts: int, router_dtype: torch.dtype | None = None) -> Factory:
    """The model with Switch layers; a router is computed in float32 unless it is told otherwise.

    Raises ValueError for fewer than two experts, between which there is nothing to choose.
    """
    if type(experts) is not int or experts < 2:
        raise ValueError(f"experts is {experts!r}, must be a whole number, at least 2")
    return Factory(case, lambda: Switch(case.width, case.hidden, experts, case.capacity_factor, router_dtype))
