"""Multi-head self-attention through ``scaled_dot_product_attention``. The baseline.

One product makes q, k and v, torch picks the attention kernel, one product mixes the heads.

Source: Vaswani et al. 2017, arXiv:1706.03762
"""

from __future__ import annotations

from archbench.kernels.mixing_block import MixingBlockCase
from archbench.kernels.mixing_block._layers import SelfAttention
from archbench.kernels.mixing_block._workload import block_with
from archbench.track import Call, Contender


def _build(case: MixingBlockCase) -> Call:
    return block_with(case, SelfAttention(case.width, case.heads))


CONTENDER: Contender[MixingBlockCase] = Contender(build=_build, family="torch")
