"""GPTQ: weights are rounded a column at a time, and those still to come make up for what rounding has cost so far.

A layer's outputs on the calibration images err by ``e H e^T``, with ``e`` what rounding adds to a row of weights and
``H = X^T X / samples``. A column that is rounded leaves an error that the columns after it can lessen by its regression
on them; with ``H^-1 = U^T U`` (U upper triangular) row k of U holds those coefficients, and ``1 / U_kk^2`` is what of
column k they cannot explain. If a rounding error is ``step^2 / 12`` in the mean, the outputs err by that times
``sum 1 / U_kk^2``, and rounding alone by that times the trace of H: correlated inputs are what is gained from. Columns
with large inputs go first, while there are many left to make up for them. Layers are taken in the order of the network,
each with the inputs that the rounded ones before it give.

Steps are those of the weight quantiser and stay: each column is rounded by its group's, in whatever order it comes.

Letters: N outputs, K inputs, S samples.

Source: Frantar et al. 2022, arXiv:2210.17323; the mean error: Chee et al. 2023, arXiv:2307.13304 (QuIP)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archbench.models.vit_int4._layers import QuantLinear, calibrate, linears, quantised
from archbench.models.vit_int4._plan import Plan
from archbench.models.vit_int4._quantiser import WeightQuantiser
from archbench.models.vit_int4._vit import VisionTransformer

DAMPING = 0.01  # of the mean diagonal of H, added to it: few calibration images leave directions without any input
BLOCK = 128  # columns rounded before the ones after them learn of it: one matrix product instead of many small ones


def gptq(weight_NK: Tensor, hessian_KK: Tensor, quantiser: WeightQuantiser, damping: float = DAMPING) -> Tensor:
    """Weights (N, K), each on a level of their ``quantiser``, for H (K, K) of the inputs."""
    rows, inputs = weight_NK.shape
    order = hessian_KK.diagonal().argsort(descending=True, stable=True)
    upper_KK = _upper(hessian_KK[order][:, order], damping)
    steps_NK = quantiser.step.view(rows, -1).repeat_interleave(quantiser.columns, dim=1).double()[:, order]
    left_NK = weight_NK.detach().double()[:, order]  # a copy: what is still to be rounded
    rounded_NK = torch.empty_like(left_NK)
    for first in range(0, inputs, BLOCK):
        last = min(first + BLOCK, inputs)
        errors = []
        for k in range(first, last):
            step = steps_NK[:, k]
            rounded_NK[:, k] = (left_NK[:, k] / step).round().clamp(quantiser.low, quantiser.high) * step
            errors.append((left_NK[:, k] - rounded_NK[:, k]) / upper_KK[k, k])
            left_NK[:, k:last] -= torch.outer(errors[-1], upper_KK[k, k:last])
        left_NK[:, last:] -= torch.stack(errors, 1) @ upper_KK[first:last, last:]
    return rounded_NK[:, order.argsort()].to(weight_NK.dtype)


def _upper(hessian_KK: Tensor, damping: float) -> Tensor:
    """U of ``H^-1 = U^T U``, in double precision. An input that is always 0 stands alone: its weight is rounded."""
    damped = hessian_KK.double().clone()
    diagonal = damped.diagonal()  # a view
    diagonal += damping * diagonal.mean().clamp_min(torch.finfo(torch.float32).tiny)
    inverse: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper


@torch.no_grad()
def rounded(model: VisionTransformer, images_NCHW: Tensor, plan: Plan) -> VisionTransformer:
    """A copy with a plan's layers, the blocks' matrices by GPTQ on the images, everything else by its ranges."""
    copied = quantised(model, plan).to(images_NCHW.device).eval()
    calibrate(copied, images_NCHW)
    x_NTD = _entering(copied, images_NCHW)
    layers = iter(linears(copied))
    for block in copied.blocks:
        for _ in range(4):  # qkv, proj, fc1, fc2
            _, _, layer = next(layers)
            assert isinstance(layer, QuantLinear)
            assert layer.weights is not None
            layer.weight.copy_(gptq(layer.weight, _hessian(block, layer, x_NTD), layer.weights))
        x_NTD = block(x_NTD)
    calibrate(copied, images_NCHW)
    return copied


def _entering(model: VisionTransformer, images_NCHW: Tensor) -> Tensor:
    """What the first block is given (S images, T, D)."""
    seen: list[Tensor] = []
    with model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        model(images_NCHW)
    return seen[0]


def _hessian(block: nn.Module, layer: nn.Module, x_NTD: Tensor) -> Tensor:
    """``X^T X / S`` (K, K) of what a layer of the block is given for the block's input."""
    seen: list[Tensor] = []
    with layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        block(x_NTD)
    inputs_SK = seen[0].flatten(0, -2)
    return inputs_SK.T @ inputs_SK / len(inputs_SK)
