"""Every second feed-forward layer is a Switch layer of eight experts, of which a token meets one.

Source: Fedus et al. 2021, arXiv:2101.03961
"""

from __future__ import annotations

from archbench.models.switch_lm import SwitchCase
from archbench.models.switch_lm._model import Factory, switch
from archbench.track import Contender


def _build(case: SwitchCase) -> Factory:
    return switch(case, experts=8)


CONTENDER: Contender[SwitchCase] = Contender(build=_build)
