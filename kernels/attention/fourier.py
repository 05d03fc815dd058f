"""Fourier mixing in attention's place: the real part of a 2-D FFT of v over length and head size.

FNet replaces self-attention by a fixed transform: every token still reaches every other, at O(T log T) instead of
O(T^2), but what flows is no longer decided by content. It answers another question than attention, so it is measured
beside the ranking. It ignores q and k, mixes future into past (causal cases are refused) and gives each of G KV heads
to the R = H / G query heads that share it. The transform is unnormalised, as in FNet.

Letters: B batch, H query heads, G KV heads, T length, D head size.

Source: Lee-Thorp et al. 2021, arXiv:2105.03824
"""

from __future__ import annotations

import torch
from torch import Tensor

from archbench.kernels.attention import AttentionCase
from archbench.kernels.attention._fourier_gate import DIFFERS, gate
from archbench.track import Call, Contender, Unavailable


def _build(case: AttentionCase) -> Call:
    if case.causal:
        raise Unavailable("a Fourier transform over the sequence cannot be causal")
    if case.backward:
        raise Unavailable("Fourier mixing has no gradient for q and k")
    if case.dtype in ("bf16", "fp16"):
        raise Unavailable(f"torch.fft has no {case.dtype} on CPU, and on CUDA only fp16 at powers of two")
    shared = case.heads // case.groups

    def mixing(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        mixed_BGTD = torch.fft.fft2(v_BGTD, dim=(-2, -1)).real
        return mixed_BGTD.repeat_interleave(shared, dim=1) if shared > 1 else mixed_BGTD.contiguous()

    return mixing


CONTENDER: Contender[AttentionCase] = Contender(build=_build, differs=DIFFERS, gate=gate)
