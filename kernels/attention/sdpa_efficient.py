"""scaled_dot_product_attention held to its memory-efficient backend, the CUTLASS kernels of xFormers.

Source: Rabe & Staats 2021, arXiv:2112.05682; https://github.com/facebookresearch/xformers
"""

from __future__ import annotations

from functools import partial

from torch.nn.attention import SDPBackend

from archbench.kernels.attention import AttentionCase
from archbench.kernels.attention._sdpa_backend import only
from archbench.track import Contender

CONTENDER: Contender[AttentionCase] = Contender(
    build=partial(only, SDPBackend.EFFICIENT_ATTENTION), device="cuda", family="torch"
)
