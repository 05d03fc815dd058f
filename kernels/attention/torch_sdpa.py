"""torch.nn.functional.scaled_dot_product_attention as it comes: torch picks the backend. The baseline.

Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F

from archbench.kernels.attention import AttentionCase
from archbench.track import Call, Contender


def _build(case: AttentionCase) -> Call:
    return partial(F.scaled_dot_product_attention, is_causal=case.causal, enable_gqa=case.grouped)


CONTENDER: Contender[AttentionCase] = Contender(build=_build, family="torch")
