"""Fourier mixing as FNet publishes it: ``torch.fft.fft2(x).real``.

The whole complex spectrum is made and half of it thrown away; autograd transforms a complex gradient back.

Source: Lee-Thorp et al. 2021, arXiv:2105.03824
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archbench.kernels.mixing_block import MixingBlockCase
from archbench.kernels.mixing_block._reference import FOURIER
from archbench.kernels.mixing_block._workload import block_with
from archbench.track import Call, Contender, Unavailable


class _PublishedMixing(nn.Module):
    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.fft.fft2(x_BTD).real


def _build(case: MixingBlockCase) -> Call:
    if case.dtype == "bf16":
        raise Unavailable("torch.fft has no bf16")
    return block_with(case, _PublishedMixing())


CONTENDER: Contender[MixingBlockCase] = Contender(
    build=_build,
    family="peer",
    differs="a fixed Fourier transform in attention's place: nothing is weighed by content",
    gate=FOURIER,
)
