"""What a contender of this track is: a way from a float network to one of few bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from archbench.models.vit_int4._plan import Bits
from archbench.models.vit_int4._vit import VisionTransformer

Runtime = Literal["onnx", "torch"]

EXTREMES = 8192  # calibration images where ranges go to the largest and smallest value


def _as_it_is(model: nn.Module) -> nn.Module:
    return model


@dataclass(frozen=True)
class Method:
    """``convert``: a trained float network and calibration images (N, C, H, W) -> a network of the method, ready for
    use or for training. ``trains``: the converted network is trained on, with the updates that the float one gets too.
    ``finish``: what is deployed, of the same answers: a network of ``_layers``, or with ``runtime`` "torch" any.
    ``calibration``: how many images it is given; the first few hundred where they are large.
    ``bits``: those of the blocks' matrices, which rounding alone is compared at; None where nothing is trained.
    """

    convert: Callable[[VisionTransformer, Tensor], nn.Module]
    trains: bool = False
    finish: Callable[[nn.Module], nn.Module] = _as_it_is
    runtime: Runtime = "onnx"
    calibration: int = 512
    bits: Bits | None = None

    def __call__(self, model: VisionTransformer, images_NCHW: Tensor) -> nn.Module:
        return self.convert(model, images_NCHW)
