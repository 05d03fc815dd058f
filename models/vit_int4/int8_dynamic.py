"""Weights in 8 bits, inputs rounded to 8 bits by the range of each call: PyTorch's dynamic quantisation, on CPUs.

Source: https://docs.pytorch.org/docs/stable/generated/torch.ao.quantization.quantize_dynamic.html
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from archbench.models.vit_int4 import VitCase
from archbench.models.vit_int4._method import Method
from archbench.models.vit_int4._vit import VisionTransformer
from archbench.track import Contender


def _convert(model: VisionTransformer, images: Tensor) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", r"torch\.quantize_per_tensor", UserWarning)
        found: nn.Module = torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear}, torch.qint8)
    return found


def build(case: VitCase) -> Method:
    return Method(_convert, runtime="torch")


CONTENDER: Contender[VitCase] = Contender(build=build, device="cpu", family="torch")
