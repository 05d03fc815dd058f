"""scaled_dot_product_attention held to its composite (math) backend: one operation after another, in C++.

Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.attention.sdpa_kernel.html
"""

from __future__ import annotations

from functools import partial

from torch.nn.attention import SDPBackend

from archbench.kernels.attention import AttentionCase
from archbench.kernels.attention._sdpa_backend import only
from archbench.track import Contender

CONTENDER: Contender[AttentionCase] = Contender(build=partial(only, SDPBackend.MATH), family="torch")
