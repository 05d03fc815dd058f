"""Inputs and workload of the mixing block, and the weights that all its contenders and references share.

Letters: B batch, T length, D width, F width of the feed-forward layer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from archbench.kernels.mixing_block import MixingBlockCase
from archbench.kernels.mixing_block._layers import Block
from archbench.track import Call, Device

TORCH_DTYPE = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}


def make_inputs(case: MixingBlockCase, seed: int, device: Device) -> tuple[Tensor, ...]:
    """Standard normal x_BTD, and dout_BTD where the case has a backward; the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    shape = (case.batch, case.length, case.width)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(1 + case.backward)]
    return tuple(tensor.to(device=device, dtype=TORCH_DTYPE[case.dtype]) for tensor in drawn)


def weights_of(block: nn.Module, case: MixingBlockCase) -> dict[str, Tensor]:
    """Weights by the names of a block, in float64, rounded to the case's dtype: equal names have equal weights.

    Matrices keep the variance of what passes through them; norms and biases are off their usual ones and zeros, so that
    one that is forgotten shows.
    """
    found = {}
    for name, parameter in block.named_parameters():
        generator = torch.Generator().manual_seed(sum(name.encode()) * 65_537 + len(name))
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.dim() == 2:
            values /= math.sqrt(parameter.shape[1])
        else:
            values = values / 8 + ("norm.weight" in name)
        found[name] = values.to(TORCH_DTYPE[case.dtype]).double()
    return found


def block_with(case: MixingBlockCase, mixing: nn.Module | None) -> Call:
    """The call of a contender: the block with its mixing, the weights filled in."""
    block = Block(case.width, case.hidden, mixing).to(TORCH_DTYPE[case.dtype])
    block.load_state_dict(weights_of(block, case))
    return block


def _moved(call: Any, x_BTD: Tensor) -> Any:
    """The block where its input is; after the first call there is nothing to move."""
    return call if call.feed_forward.up.weight.device == x_BTD.device else call.to(x_BTD.device)


def workload(case: MixingBlockCase, call: Call) -> Call:
    """``x -> out`` without gradients, or ``(x, dout) -> {out, dx, and the gradient of each weight by its name}``."""

    def forward(x_BTD: Tensor) -> Any:
        with torch.no_grad():
            return _moved(call, x_BTD)(x_BTD)

    def forward_backward(x_BTD: Tensor, dout_BTD: Tensor) -> Any:
        block = _moved(call, x_BTD)
        names, parameters = zip(*block.named_parameters(), strict=True)
        with torch.enable_grad():
            x_BTD = x_BTD.detach().requires_grad_()
            out_BTD = block(x_BTD)
            grads = torch.autograd.grad(out_BTD, (x_BTD, *parameters), dout_BTD)
        return {"out": out_BTD.detach()} | dict(zip(("x", *names), grads, strict=True))

    return forward_backward if case.backward else forward
