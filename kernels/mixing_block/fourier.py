"""Fourier mixing as FNet defines it, at the price of a real transform: half the columns, mirrored.

The input is real, so ``rfft2`` computes columns 0 to D/2 only; the real part is symmetric, ``Y[t, d] = Y[-t, -d]``,
which fills the rest by copying. A few samples at a time, so that the half spectrum stays in cache. The map is its own
transpose: the backward is the same transform of the gradient, and saves nothing.

Source: Lee-Thorp et al. 2021, arXiv:2105.03824
"""

from __future__ import annotations

from archbench.kernels.mixing_block import MixingBlockCase
from archbench.kernels.mixing_block._layers import FourierMixing
from archbench.kernels.mixing_block._reference import FOURIER
from archbench.kernels.mixing_block._workload import block_with
from archbench.track import Call, Contender


def _build(case: MixingBlockCase) -> Call:
    return block_with(case, FourierMixing())


CONTENDER: Contender[MixingBlockCase] = Contender(
    build=_build, differs="a fixed Fourier transform in attention's place: nothing is weighed by content", gate=FOURIER
)
