"""scaled_dot_product_attention held to FlashAttention: FlashAttention-2 on CUDA, a tiled C++ kernel on CPU.

On CUDA it takes half precision only; the CPU kernel takes every dtype.

Source: Dao 2023, arXiv:2307.08691
"""

from __future__ import annotations

from functools import partial

from torch.nn.attention import SDPBackend

from archbench.kernels.attention import AttentionCase
from archbench.kernels.attention._sdpa_backend import only
from archbench.track import Contender

CONTENDER: Contender[AttentionCase] = Contender(build=partial(only, SDPBackend.FLASH_ATTENTION), family="torch")
