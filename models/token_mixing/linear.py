"""Every layer mixes by two learned matrices, over the length and over the width: FNet's "Linear".

The T x T matrix fixes the length for good and has T^2 parameters, which the feed-forward layers lack.

Source: Lee-Thorp et al. 2021, arXiv:2105.03824
"""

from __future__ import annotations

from archbench.kernels.mixing_block._layers import LinearMixing
from archbench.models.token_mixing import TokenMixingCase
from archbench.models.token_mixing._model import Factory, factory
from archbench.track import Contender


def _build(case: TokenMixingCase) -> Factory:
    return factory(case, lambda layer: LinearMixing(case.width, case.length))


CONTENDER: Contender[TokenMixingCase] = Contender(build=_build)
