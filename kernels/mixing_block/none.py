"""No mixing: the feed-forward half of the block alone. Its ratio bounds what any exchange of attention can gain.

Source: Lee-Thorp et al. 2021, arXiv:2105.03824 ("FF-only")
"""

from __future__ import annotations

from archbench.kernels.mixing_block import MixingBlockCase
from archbench.kernels.mixing_block._reference import NONE
from archbench.kernels.mixing_block._workload import block_with
from archbench.track import Call, Contender


def _build(case: MixingBlockCase) -> Call:
    return block_with(case, None)


CONTENDER: Contender[MixingBlockCase] = Contender(build=_build, differs="no token sees another", gate=NONE)
