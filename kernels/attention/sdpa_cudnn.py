"""scaled_dot_product_attention held to NVIDIA's cuDNN kernels.

Source: https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html
"""

from __future__ import annotations

from torch.nn.attention import SDPBackend

from archbench.kernels.attention import AttentionCase
from archbench.kernels.attention._sdpa_backend import HALF, only
from archbench.track import Call, Contender, Unavailable


def _build(case: AttentionCase) -> Call:
    if case.dtype not in HALF:
        raise Unavailable("cuDNN attention is for bf16 and fp16")
    return only(SDPBackend.CUDNN_ATTENTION, case)


CONTENDER: Contender[AttentionCase] = Contender(build=_build, device="cuda", family="torch")
