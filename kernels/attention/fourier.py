"""Fourier mixing in attention's place: the real part of a 2-D FFT of v over length and head size.

FNet replaces self-attention by a fixed transform: every token still reaches every other, at O(T log T) instead of
O(T^2), but what flows is no longer decided by content. It answers another question than attention, so it is measured
beside the ranking. It ignores q and k, mixes future into past (causal cases are refused) and gives each of G KV heads
to the R = H / G query heads that share it. The transform is unnormalised, as in FNet.

Letters: B batch, H query heads, G KV heads, T length, D head size.

Source: Lee-Thorp et al. 2021, arXiv:2105.03824
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archbench.checks import Tolerance, Wrong, compare, flatten, like, to_float64
from archbench.kernels.attention import AttentionCase
from archbench.track import Call, Contender, Unavailable

EPS = {"fp64": 2.0**-52, "fp32": 2.0**-23, "bf16": 2.0**-7, "fp16": 2.0**-10}


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


def gate(case: AttentionCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    """Relative error against numpy's float64 transform. Raises Wrong.

    A transform of n = T x D standard normal values has a standard deviation of sqrt(n / 2) and an error that grows with
    log2(n), so the bound does both.
    """
    given = list(flatten(outputs).values())
    if len(given) != 1:
        raise Wrong(f"returned {len(given)} tensors, expected 1")
    like(given[0], inputs[2])
    points = case.length * case.head_dim
    want = np.fft.fft2(to_float64(inputs[2], "v"), axes=(-2, -1)).real.repeat(case.heads // case.groups, axis=1)
    eps = EPS[case.dtype]
    bound = 4 * eps * (1 + math.log2(points))
    reason = f"{case.dtype}, 4 eps per stage of a transform of {points} points"
    return compare(to_float64(given[0]), want, Tolerance(rtol=bound, atol=bound * math.sqrt(points / 2), reason=reason))


CONTENDER: Contender[AttentionCase] = Contender(
    build=_build,
    differs="a fixed Fourier mix of v: no queries, no keys, no weights by content",
    gate=gate,
)
