"""A Vision Transformer whose products meet few levels: the layers that take the float ones' places.

``quantised`` copies a network and puts a quantiser before every operand a ``Plan`` names: a matrix's weights, what it
is multiplied with, the four operands of attention's two products, and what softmax and GELU are given. ``calibrate``
sets the ranges of activations in the order of the network, each layer seeing what the rounded ones before it give. The
residual stream, norms, softmax and GELU themselves stay in floating point. Every method ends in such a network,
whichever library trained it: what is exported and what is judged is this.

Letters: N images or outputs, T tokens, K inputs, D features, M heads.

Source: Li et al. 2022, arXiv:2210.06707 (Q-ViT); Lin et al. 2022, arXiv:2111.13824 (FQ-ViT)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.models.vit_int4._plan import FLOAT, Bits, Plan, Ranges
from archbench.models.vit_int4._quantiser import ActivationQuantiser, WeightQuantiser
from archbench.models.vit_int4._vit import PatchEmbed, VisionTransformer

PIECE = 512  # calibration images at a time
OPERANDS = ("queries", "keys", "values", "shares")  # of attention's two products


class QuantLinear(nn.Module):
    """``nn.Linear`` with quantisers: (..., K) -> (..., N). Either may be absent."""

    def __init__(self, weight: Tensor, bias: Tensor | None, bits: Bits, ranges: Ranges) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.weights = None if bits.weights == FLOAT else WeightQuantiser(weight, bits.weights, bits.group, ranges)
        self.inputs = None if bits.activations == FLOAT else ActivationQuantiser(bits.activations, ranges)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.inputs is None else self.inputs(x)
        return F.linear(x, self.weight if self.weights is None else self.weights(self.weight), self.bias)


class QuantPatchEmbed(nn.Module):
    """(N, C, H, W) -> (N, T - 1, D), as a matrix product over each patch's pixels."""

    def __init__(self, embed: PatchEmbed, bits: Bits, ranges: Ranges) -> None:
        super().__init__()
        self.patch = embed.proj.kernel_size[0]
        self.proj = QuantLinear(embed.proj.weight.flatten(1), embed.proj.bias, bits, ranges)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        n, c, h, w = images_NCHW.shape
        p = self.patch
        patches = images_NCHW.reshape(n, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
        out: Tensor = self.proj(patches.reshape(n, (h // p) * (w // p), c * p * p))
        return out


class QuantMix(nn.Module):
    """Attention's two products with rounded operands, and softmax of rounded scores: (N, M, T, D / M) three times ->
    the same.
    """

    def __init__(self, bits: int, scores: int, ranges: Ranges) -> None:
        super().__init__()
        for name in OPERANDS:
            setattr(self, name, activations(bits, ranges))
        self.scores = activations(scores, ranges)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.queries(q * q.shape[-1] ** -0.5) @ self.keys(k).transpose(-1, -2)
        out: Tensor = self.shares(self.scores(scores).softmax(-1)) @ self.values(v)
        return out


class QuantGelu(nn.Module):
    """GELU of rounded values, of any shape."""

    def __init__(self, bits: int, ranges: Ranges) -> None:
        super().__init__()
        self.inputs: nn.Module = ActivationQuantiser(bits, ranges)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.inputs, ActivationQuantiser):
            out: Tensor = self.inputs(x, gelu=True)
            return out
        return F.gelu(self.inputs(x))  # a library's quantiser


def activations(bits: int, ranges: Ranges) -> nn.Module:
    """A quantiser, or what leaves values as they are."""
    return nn.Identity() if bits == FLOAT else ActivationQuantiser(bits, ranges)


def quantised(model: VisionTransformer, plan: Plan) -> VisionTransformer:
    """A copy with the plan's layers; ``calibrate`` it before use where activations are rounded."""
    model = copy.deepcopy(model)
    for owner, name, linear in linears(model):
        bits = plan.edges if name == "head" else plan.blocks
        setattr(owner, name, QuantLinear(linear.weight, linear.bias, bits, plan.ranges))
    if plan.edges != Bits():
        model.patch_embed = QuantPatchEmbed(model.patch_embed, plan.edges, plan.ranges)
    for block in model.blocks:
        if min(plan.attention, plan.nonlinear) < FLOAT:
            block.attn.mix = QuantMix(plan.attention, plan.nonlinear, plan.ranges)
        if plan.nonlinear < FLOAT:
            block.mlp.act = QuantGelu(plan.nonlinear, plan.ranges)
    return model


def linears(model: VisionTransformer) -> list[tuple[Any, str, nn.Linear]]:
    """Where the matrices are: (module that has it, under which name, the layer); blocks in order, classes last."""
    found = [
        (getattr(block, part), name, getattr(getattr(block, part), name))
        for block in model.blocks
        for part, name in (("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2"))
    ]
    return [*found, (model, "head", model.head)]


def quantisers(model: nn.Module) -> Iterator[ActivationQuantiser]:
    return (module for module in model.modules() if isinstance(module, ActivationQuantiser))


@torch.no_grad()
def calibrate(model: nn.Module, images_NCHW: Tensor) -> None:
    """Set the ranges of all activations: from the first images, and where the extremes count, widened by the others."""
    for each in quantisers(model):
        each.observing = "set"
    for piece in images_NCHW.split(PIECE):
        model(piece)
        for each in quantisers(model):
            each.observing = "widen"
        if all(each.ranges == "least_squares" for each in quantisers(model)):
            break
    for each in quantisers(model):
        each.observing = ""


def rounding(plan: Plan) -> Callable[[VisionTransformer, Tensor], VisionTransformer]:
    """``convert`` of methods that round by a plan and set ranges from the calibration images."""

    def convert(model: VisionTransformer, images: Tensor) -> VisionTransformer:
        rounded = quantised(model, plan).to(images.device).eval()
        calibrate(rounded, images)
        return rounded

    return convert
