"""Eight experts, and the router is computed in bfloat16 as the rest is: what selective precision is there to avoid.

Source: Fedus et al. 2021, arXiv:2101.03961, section 2.4 and table 2
"""

from __future__ import annotations

import torch

from archbench.models.switch_lm import SwitchCase
from archbench.models.switch_lm._model import Factory, switch
from archbench.track import Contender, Unavailable


def _build(case: SwitchCase) -> Factory:
    if case.precision != "bf16":
        raise Unavailable(f"in {case.precision} nothing is computed in bfloat16: the router neither")
    return switch(case, experts=8, router_dtype=torch.bfloat16)


CONTENDER: Contender[SwitchCase] = Contender(build=_build)
