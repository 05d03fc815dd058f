"""The flash-attn package: FlashAttention-2's own CUDA kernels, flash_attn_func.

The authors' kernels, called without torch's dispatcher of scaled_dot_product_attention in between; torch carries a
copy of an older state of them. It wants the heads behind the length: both are views of the same memory, since
the kernels take strides, and only the last dimension must be contiguous.

Letters: B batch, H query heads, G KV heads, T length, D head size.

Source: Dao 2023, arXiv:2307.08691; https://github.com/Dao-AILab/flash-attention
"""

from __future__ import annotations

from flash_attn import flash_attn_func
from torch import Tensor

from archbench.kernels.attention import AttentionCase
from archbench.track import Call, Contender, Unavailable

DTYPES = ("bf16", "fp16")
MAX_HEAD_DIM = 256


def _build(case: AttentionCase) -> Call:
    if case.dtype not in DTYPES:
        raise Unavailable(f"flash-attn has half precision only, no {case.dtype}")
    if case.head_dim > MAX_HEAD_DIM:
        raise Unavailable(f"flash-attn takes head sizes up to {MAX_HEAD_DIM}")

    def attention(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        q_BTHD, k_BTGD, v_BTGD = (tensor.transpose(1, 2) for tensor in (q_BHTD, k_BGTD, v_BGTD))
        return flash_attn_func(q_BTHD, k_BTGD, v_BTGD, causal=case.causal).transpose(1, 2)

    return attention


CONTENDER: Contender[AttentionCase] = Contender(build=_build, device="cuda", family="peer")
