"""What each mixing has to answer: the block by its definition in float64, and the gate that compares with it.

Softmax and layer norm are written out, and the Fourier transform is two products with the cosines and sines of its
definition, not an FFT. Autograd derives the gradients.

Letters: B batch, T length, D width, H heads, E = D / H head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archbench.checks import Tolerance, Wrong, compare, flatten, like, to_float64
from archbench.kernels.mixing_block import MixingBlockCase
from archbench.kernels.mixing_block._layers import Block, FourierMixing, LinearMixing, SelfAttention
from archbench.kernels.mixing_block._workload import weights_of

Weights = dict[str, Tensor]

EPS = {"fp64": 2.0**-52, "fp32": 2.0**-23, "bf16": 2.0**-7}
# Root-mean-square error allowed for the output and for every gradient, in units of EPS of their own root mean square.
# The worst single element of ten million lies within seven such deviations, and a tenth of a row's values below them.
ALLOWED = {"fp64": 64.0, "fp32": 8.0, "bf16": 2.0}


def _angles(size: int, device: torch.device) -> Tensor:
    index = torch.arange(size, device=device)
    return (index[:, None] * index % size).double() * (2 * math.pi / size)


def fourier(x_BTD: Tensor, weights: Weights, case: MixingBlockCase) -> Tensor:
    time_TT, width_DD = (_angles(size, x_BTD.device) for size in x_BTD.shape[1:])
    return time_TT.cos() @ x_BTD @ width_DD.cos() - time_TT.sin() @ x_BTD @ width_DD.sin()


def attention(x_BTD: Tensor, weights: Weights, case: MixingBlockCase) -> Tensor:
    qkv = x_BTD @ weights["mixing.qkv.weight"].T + weights["mixing.qkv.bias"]
    q_BTHE, k_BTHE, v_BTHE = (part.unflatten(-1, (case.heads, -1)) for part in qkv.chunk(3, dim=-1))
    scores_BHTS = torch.einsum("bthe,bshe->bhts", q_BTHE, k_BTHE) / math.sqrt(case.width // case.heads)
    raised_BHTS = (scores_BHTS - scores_BHTS.amax(-1, keepdim=True)).exp()
    mixed_BTHE = torch.einsum("bhts,bshe->bthe", raised_BHTS / raised_BHTS.sum(-1, keepdim=True), v_BTHE)
    return mixed_BTHE.flatten(-2) @ weights["mixing.out.weight"].T + weights["mixing.out.bias"]


def linear(x_BTD: Tensor, weights: Weights, case: MixingBlockCase) -> Tensor:
    return weights["mixing.over_length_TT"] @ (x_BTD @ weights["mixing.over_width.weight"].T)


def _norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = ((centred * centred).mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def block(x_BTD: Tensor, weights: Weights, case: MixingBlockCase, mixing: Callable[..., Tensor] | None) -> Tensor:
    if mixing is not None:
        x_BTD = x_BTD + mixing(_norm(x_BTD, weights, "mixing_norm"), weights, case)
    normed = _norm(x_BTD, weights, "feed_forward_norm")
    hidden = normed @ weights["feed_forward.up.weight"].T + weights["feed_forward.up.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x_BTD + hidden @ weights["feed_forward.down.weight"].T + weights["feed_forward.down.bias"]


@dataclass(frozen=True)
class BlockGate:
    """Output, and with a backward every gradient, within so many roundings of the float64 definition."""

    mixing: Callable[..., Tensor] | None
    layer: Callable[[MixingBlockCase], Any]  # the mixing layer, for the names and shapes of its weights

    def want(self, case: MixingBlockCase, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        x_BTD = inputs[0].detach().double().requires_grad_(case.backward)
        example = Block(case.width, case.hidden, self.layer(case))
        weights = {k: v.to(x_BTD.device) for k, v in weights_of(example, case).items()}
        if not case.backward:
            with torch.no_grad():
                return {"output": block(x_BTD, weights, case, self.mixing)}
        with torch.enable_grad():
            leaves = [weight.requires_grad_() for weight in weights.values()]
            out_BTD = block(x_BTD, weights, case, self.mixing)
            grads = torch.autograd.grad(out_BTD, [x_BTD, *leaves], inputs[1].double())
        return {"out": out_BTD.detach()} | dict(zip(("x", *weights), grads, strict=True))

    def __call__(self, case: MixingBlockCase, inputs: tuple[Tensor, ...], outputs: Any) -> float:
        """The largest relative error. Raises Wrong."""
        want, got = self.want(case, inputs), flatten(outputs)
        if got.keys() != want.keys():
            raise Wrong(f"returned {sorted(got) or 'nothing'}, expected {sorted(want)}")
        errors = []
        for name, target in want.items():
            like(got[name], inputs[0], name)
            expected = to_float64(target, name)
            size = math.sqrt(float((expected * expected).mean()))
            bound = ALLOWED[case.dtype] * EPS[case.dtype]
            # A single element may be off by more than the root mean square of all.
            tolerance = Tolerance(rtol=8 * bound, atol=8 * bound * size, reason=f"{case.dtype}, values near {size:.2g}")
            error = compare(to_float64(got[name], name), expected, tolerance, name)
            if error > bound:
                raise Wrong(f"{name} is off by {error:.3g} of its norm; {bound:.3g} is what {case.dtype} may cost")
            errors.append(error)
        return max(errors)


ATTENTION = BlockGate(attention, lambda case: SelfAttention(case.width, case.heads))
FOURIER = BlockGate(fourier, lambda case: FourierMixing())
LINEAR = BlockGate(linear, lambda case: LinearMixing(case.width, case.length))
NONE = BlockGate(None, lambda case: None)
