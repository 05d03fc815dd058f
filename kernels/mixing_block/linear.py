"""Linear mixing: a learned matrix over the length and one over the width, FNet's "Linear" encoder.

What Fourier mixing is, were its two matrices learned: two products that processors are made for, and a length that is
fixed for good.

Source: Lee-Thorp et al. 2021, arXiv:2105.03824
"""

from __future__ import annotations

from archbench.kernels.mixing_block import MixingBlockCase
from archbench.kernels.mixing_block._layers import LinearMixing
from archbench.kernels.mixing_block._reference import LINEAR
from archbench.kernels.mixing_block._workload import block_with
from archbench.track import Call, Contender


def _build(case: MixingBlockCase) -> Call:
    return block_with(case, LinearMixing(case.width, case.length))


CONTENDER: Contender[MixingBlockCase] = Contender(
    build=_build, differs="two learned matrices in attention's place: nothing is weighed by content", gate=LINEAR
)
