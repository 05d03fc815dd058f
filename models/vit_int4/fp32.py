"""The float network, trained as long as any other: what all are compared with. Runs in ONNX Runtime as they do."""

from __future__ import annotations

from torch import Tensor, nn

from archbench.models.vit_int4 import VitCase
from archbench.models.vit_int4._method import Method
from archbench.models.vit_int4._vit import VisionTransformer
from archbench.track import Contender


def _as_it_is(model: VisionTransformer, images: Tensor) -> nn.Module:
    return model


def build(case: VitCase) -> Method:
    return Method(_as_it_is)


CONTENDER: Contender[VitCase] = Contender(build=build)
