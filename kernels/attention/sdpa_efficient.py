"""scaled_dot_product_attention held to its memory-efficient backend, the CUTLASS kernels of xFormers.

Source: Rabe & Staats 2021, arXiv:2112.05682; https://github.com/facebookresearch/xformers
"""

from __future__ import annotations

from torch.nn.attention import SDPBackend

from archbench.kernels.attention import AttentionCase
from archbench.kernels.attention._sdpa_backend import only
from archbench.track import Call, Contender, Unavailable


def _build(case: AttentionCase) -> Call:
    if case.dtype == "fp64":
        raise Unavailable("the memory-efficient kernels have no fp64")
    if case.grouped:
        raise Unavailable("the memory-efficient kernels want as many KV heads as heads")
    return only(SDPBackend.EFFICIENT_ATTENTION, case)


CONTENDER: Contender[AttentionCase] = Contender(build=_build, device="cuda", family="torch")
