"""scaled_dot_product_attention held to NVIDIA's cuDNN kernels.

Source: https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html
"""

from __future__ import annotations

from functools import partial

from torch.nn.attention import SDPBackend

from archbench.kernels.attention import AttentionCase
from archbench.kernels.attention._sdpa_backend import only
from archbench.track import Contender

CONTENDER: Contender[AttentionCase] = Contender(
    build=partial(only, SDPBackend.CUDNN_ATTENTION), device="cuda", family="torch"
)
