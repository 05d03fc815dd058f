"""Layers of Brevitas in the place of the track's, and back: its quantisers are trained, their numbers are deployed.

Brevitas builds a quantiser from a class of choices. Here: a range for each row of weights and one for each activation,
the best of twenty tried on the weights and on the calibration images, then learned, as its logarithm, which is how
Brevitas' own 4-bit networks for ImageNet learn those of activations; activations have an integer zero point, learned
too. Weights use 15 of 16 levels, as many above 0 as below.

Brevitas keeps the ranges of N rows as a matrix (N, 1); here they are (N,), or a recipe would let them decay.

Letters: N outputs.

Source: https://github.com/Xilinx/brevitas (brevitas.quant, brevitas_examples/imagenet_classification)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from brevitas.core.scaling import ParameterFromStatsFromParameterScaling
from brevitas.inject.enum import RestrictValueType
from brevitas.nn import QuantIdentity
from brevitas.nn import QuantLinear as BrevitasLinear
from brevitas.quant import Int8WeightPerChannelFloatMSE, ShiftedUint8ActPerTensorFloatMSE
from torch import Tensor, nn
from torch.nn.utils import parametrize

from archbench.models.vit_int4._layers import QuantLinear, quantised
from archbench.models.vit_int4._plan import Bits, Plan
from archbench.models.vit_int4._quantiser import ActivationQuantiser
from archbench.models.vit_int4._vit import VisionTransformer


class Weights(Int8WeightPerChannelFloatMSE):
    """A learned range for each row."""

    restrict_scaling_type = RestrictValueType.LOG_FP
    restrict_scale_positive = True  # or the search for it would try negative ones, which have no logarithm


class Activations(ShiftedUint8ActPerTensorFloatMSE):
    """A learned range and a learned zero point."""

    restrict_scaling_type = RestrictValueType.LOG_FP
    restrict_scale_positive = True
    collect_stats_steps = 1  # calls in training mode whose values are looked at before anything is learned


class Column(nn.Module):
    """A parameter (N, 1) kept as (N,)."""

    def forward(self, kept_N: Tensor) -> Tensor:
        return kept_N[:, None]

    def right_inverse(self, wanted_N1: Tensor) -> Tensor:
        return wanted_N1[:, 0]


def converted(model: VisionTransformer, images_NCHW: Tensor, plan: Plan) -> VisionTransformer:
    """A copy with a plan's layers by Brevitas, calibrated on the images."""
    copied = _replaced(_replaced(quantised(model, plan), QuantLinear, _linear), ActivationQuantiser, _identity)
    copied = _plain(copied, True).to(images_NCHW.device).train()
    with torch.no_grad():
        copied(images_NCHW)
        copied(images_NCHW)  # what the first call has collected becomes what is learned
    for module in list(copied.modules()):
        if isinstance(module, ParameterFromStatsFromParameterScaling):
            parametrize.register_parametrization(module, "value", Column())
    return copied.eval()


def finished(model: nn.Module) -> nn.Module:
    """A copy in the layers of the track, with the levels that Brevitas has found."""
    copied = _plain(copy.deepcopy(model), False)
    return _replaced(_replaced(copied, BrevitasLinear, _own_linear), QuantIdentity, _own_quantiser)


def _plain(model: Any, plain: bool) -> Any:
    """Whether quantisers answer with numbers alone; else with ranges too, and each product's is worked out."""
    for module in model.modules():
        if hasattr(module, "skip_create_quant_tensor"):
            module.skip_create_quant_tensor = plain
    return model


def _replaced(model: Any, kind: type[nn.Module], by: Callable[[Any], nn.Module]) -> Any:
    for owner in list(model.modules()):
        for name, child in owner.named_children():
            if isinstance(child, kind):
                setattr(owner, name, by(child))
    return model


def _linear(layer: QuantLinear) -> nn.Module:
    if layer.weights is None or layer.inputs is None:
        return layer  # left in floating point
    outputs, inputs = layer.weight.shape
    replacing: nn.Module = BrevitasLinear(
        inputs,
        outputs,
        bias=layer.bias is not None,
        weight_quant=Weights,
        weight_bit_width=layer.weights.bits,
        input_quant=Activations,
        input_bit_width=layer.inputs.bits,
    )
    replacing.load_state_dict({"weight": layer.weight, "bias": layer.bias}, strict=False)
    return replacing


def _identity(quantiser: ActivationQuantiser) -> nn.Module:
    found: nn.Module = QuantIdentity(act_quant=Activations, bit_width=quantiser.bits)
    return found


@torch.no_grad()
def _own_linear(layer: Any) -> QuantLinear:
    weight = layer.quant_weight()
    bits = Bits(int(weight.bit_width), int(layer.input_quant.bit_width()))
    own = QuantLinear(weight.value, layer.bias, bits, "rows")
    assert own.weights is not None
    assert own.inputs is not None
    own.weights.log_step.copy_(weight.scale.flatten().log())
    _copy_range(layer.input_quant, own.inputs)
    return own


@torch.no_grad()
def _own_quantiser(identity: Any) -> ActivationQuantiser:
    own = ActivationQuantiser(int(identity.act_quant.bit_width()), "rows")
    _copy_range(identity.act_quant, own)
    return own


def _copy_range(proxy: Any, own: ActivationQuantiser) -> None:
    own.to(proxy.scale().device)
    own.log_step.copy_(proxy.scale().log())
    own.zero.copy_(proxy.zero_point())
