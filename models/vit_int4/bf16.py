"""The float network with weights and activations in bfloat16, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archbench.models.vit_int4 import VitCase
from archbench.models.vit_int4._method import Method
from archbench.models.vit_int4._vit import VisionTransformer
from archbench.track import Contender


class Bfloat16(nn.Module):
    """(N, C, H, W) float32 -> (N, classes) float32, computed in bfloat16."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model.to(torch.bfloat16)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.model(images_NCHW.to(torch.bfloat16)).float()
        return logits


def _convert(model: VisionTransformer, images: Tensor) -> nn.Module:
    return Bfloat16(model).eval()


def build(case: VitCase) -> Method:
    return Method(_convert, runtime="torch")


CONTENDER: Contender[VitCase] = Contender(build=build)
