"""4 bits for weights and inputs, trained with them by torchao: an exported graph with fake quantisers (PT2E).

Ranges of inputs are learned, those of weights follow each row's largest.

Source: https://docs.pytorch.org/ao/stable/pt2e_quantization/pt2e_quant_qat.html
"""

from __future__ import annotations

from torch import Tensor, nn

from archbench.models.vit_int4 import VitCase
from archbench.models.vit_int4._method import Method
from archbench.models.vit_int4._plan import FLOAT, Bits
from archbench.models.vit_int4._torchao import converted, finished
from archbench.models.vit_int4._vit import VisionTransformer
from archbench.track import Contender, Unavailable

BITS = Bits(4, 4)


def build(case: VitCase) -> Method:
    plan = case.plan(BITS)
    if plan.nonlinear != FLOAT:
        raise Unavailable("leaves what softmax and GELU are given in floating point: cases nl32 only")

    def convert(model: VisionTransformer, images: Tensor) -> nn.Module:
        return converted(model, images, plan)

    return Method(convert, trains=True, finish=finished, bits=BITS)


CONTENDER: Contender[VitCase] = Contender(build=build, family="torchao")
