"""One feed-forward layer in every block. The baseline.

Source: Vaswani et al. 2017, arXiv:1706.03762; Radford et al. 2019 for the decoder alone
"""

from __future__ import annotations

from archbench.models.switch_lm import SwitchCase
from archbench.models.switch_lm._model import Factory, dense
from archbench.track import Contender


def _build(case: SwitchCase) -> Factory:
    return dense(case)


CONTENDER: Contender[SwitchCase] = Contender(build=_build)
