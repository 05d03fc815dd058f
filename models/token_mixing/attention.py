"""Every layer mixes by self-attention (``scaled_dot_product_attention``). The baseline.

Source: Vaswani et al. 2017, arXiv:1706.03762
"""

from __future__ import annotations

from archbench.kernels.mixing_block._layers import SelfAttention
from archbench.models.token_mixing import TokenMixingCase
from archbench.models.token_mixing._model import Factory, factory
from archbench.track import Contender


def _build(case: TokenMixingCase) -> Factory:
    return factory(case, lambda layer: SelfAttention(case.width, case.heads))


CONTENDER: Contender[TokenMixingCase] = Contender(build=_build)
