"""Fourier mixing, and attention in the last two layers: FNet's hybrid.

The paper finds that two layers of attention at the end win back most of what the transform loses.

Source: Lee-Thorp et al. 2021, arXiv:2105.03824
"""

from __future__ import annotations

from torch import nn

from archbench.kernels.mixing_block._layers import FourierMixing, SelfAttention
from archbench.models.token_mixing import TokenMixingCase
from archbench.models.token_mixing._model import Factory, factory
from archbench.track import Contender

ATTENTION_LAYERS = 2


def _build(case: TokenMixingCase) -> Factory:
    def mixing(layer: int) -> nn.Module:
        if layer < case.layers - ATTENTION_LAYERS:
            return FourierMixing(norm="ortho")
        return SelfAttention(case.width, case.heads)

    return factory(case, mixing)


CONTENDER: Contender[TokenMixingCase] = Contender(build=_build)
