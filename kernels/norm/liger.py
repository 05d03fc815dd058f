"""liger-kernel's Triton kernels for LayerNorm and RMSNorm, as its LigerLayerNorm and LigerRMSNorm call them.

One program for a row, the row in registers; the backward gives every multiprocessor its rows and adds up its shares of
the gradients of the weights. RMSNorm is told not to write the gradient of x over that of y, which it does by default:
inputs stay as they are here. Its group norm forms the variance as mean(x^2) - mean(x)^2, rounds its statistics to the
dtype of x, and does not pass the gate; it has no other norm.

Source: Hsu et al. 2024, arXiv:2410.10989; https://github.com/linkedin/Liger-Kernel
"""

from __future__ import annotations

from liger_kernel.ops import LigerLayerNormFunction, LigerRMSNormFunction

from archbench.kernels.norm import EPS, NormCase
from archbench.track import Call, Contender, Unavailable

MAX_WIDTH = 65536  # of a row, in liger's own settings


def _build(case: NormCase) -> Call:
    if case.kind == "group":
        raise Unavailable("its group norm forms the variance as mean(x^2) - mean(x)^2 and is wrong at a large mean")
    if case.kind not in ("layer", "rms"):
        raise Unavailable(f"it has no {case.kind} norm")
    if case.dtype == "fp64":
        raise Unavailable("its kernels compute in float32")
    if case.channels > MAX_WIDTH:
        raise Unavailable(f"a row lies in the registers of one program: at most {MAX_WIDTH} features")
    if case.kind == "rms":
        return lambda x, weight: LigerRMSNormFunction.apply(x, weight, EPS, 0.0, "llama", False)
    return lambda x, weight, bias: LigerLayerNormFunction.apply(x, weight, bias, EPS)


CONTENDER: Contender[NormCase] = Contender(build=_build, device="cuda", family="peer")
