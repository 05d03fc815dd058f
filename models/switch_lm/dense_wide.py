"""As many parameters as switch_e4, all of which every token meets: its switched layers are four times as wide.

What the same memory buys where operations are not the limit.

Source: Fedus et al. 2021, arXiv:2101.03961, section 3.3 (a larger dense model beside the sparse one)
"""

from __future__ import annotations

from archbench.models.switch_lm import SwitchCase
from archbench.models.switch_lm._model import Factory, dense
from archbench.track import Contender


def _build(case: SwitchCase) -> Factory:
    return dense(case, times=4)


CONTENDER: Contender[SwitchCase] = Contender(build=_build)
