"""Mixtral's router and experts as Hugging Face transformers loads them: rows sorted by expert, torch._grouped_mm.

``grouped_mm`` is the implementation of the experts that a model is loaded with on any device, where nothing else is
asked for; ``transformers_mixtral_eager`` is the other one. ``batched_mm``, which copies the matrices of a token's
experts for every token, is for a handful of tokens.

Source: https://github.com/huggingface/transformers; Jiang et al. 2024, arXiv:2401.04088
"""

from __future__ import annotations

from archbench.kernels.moe_ffn import DTYPE_BYTES, MoeCase
from archbench.kernels.moe_ffn._mixtral import layer
from archbench.track import Call, Contender, Unavailable

ROW_BYTES = 16  # torch._grouped_mm takes matrices whose rows are a multiple of it


def _build(case: MoeCase) -> Call:
    if any(size * DTYPE_BYTES[case.dtype] % ROW_BYTES for size in (case.dim, case.hidden)):
        raise Unavailable(f"torch._grouped_mm wants rows of a multiple of {ROW_BYTES} bytes")
    return layer(case, "grouped_mm")


CONTENDER: Contender[MoeCase] = Contender(build=_build, family="peer")
