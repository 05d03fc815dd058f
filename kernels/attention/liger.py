"""Liger Kernel: its fused neighbourhood attention, with a neighbourhood that holds the whole sequence.

Liger has no attention of its own for models (it leaves that to SDPA); the one kernel that answers this question is
this. A window of 2 T - 1 around every query reaches every key, so the mask it writes hides nothing. The name promises
more than the kernels do: scores, mask and weights are T x T tensors in memory, between separate Triton kernels.

Letters: B batch, H heads, T length, D head size.

Source: https://github.com/linkedin/Liger-Kernel; neighbourhood attention: Hassani et al. 2025, arXiv:2504.16922
"""

from __future__ import annotations

from liger_kernel.transformers.functional import liger_fused_neighborhood_attention
from torch import Tensor

from archbench.kernels.attention import AttentionCase
from archbench.track import Call, Contender, Unavailable


def _build(case: AttentionCase) -> Call:
    if case.causal:
        raise Unavailable("Liger's neighbourhoods reach both ways: no causal mask")
    if case.grouped:
        raise Unavailable("Liger's neighbourhood attention has no grouped KV heads")
    if case.dtype == "fp32":
        raise Unavailable("Liger's products of fp32 are in TF32")
    if case.dtype == "fp64":
        raise Unavailable("Liger's neighbourhood attention has no fp64")
    window = 2 * case.length - 1

    def attention(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor) -> Tensor:
        return liger_fused_neighborhood_attention(q_BHTD, k_BHTD, v_BHTD, kernel_size=window)

    return attention


CONTENDER: Contender[AttentionCase] = Contender(build=_build, device="cuda", family="peer")
