"""A loop over the experts: gather its tokens, apply it, add what it says to theirs. Obviously right.

Source: Shazeer et al. 2017, arXiv:1701.06538
"""

from __future__ import annotations

from functools import partial

from archbench.kernels.moe_ffn import MoeCase
from archbench.kernels.moe_ffn._layers import expert_by_expert
from archbench.track import Contender

CONTENDER: Contender[MoeCase] = Contender(build=lambda case: partial(expert_by_expert, case))
