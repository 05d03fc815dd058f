"""Every layer mixes by a 2-D Fourier transform over length and width, of which the real part is kept: FNet.

Nothing in it is learned; the feed-forward layers are wider by what attention's projections would have.

Source: Lee-Thorp et al. 2021, arXiv:2105.03824
"""

from __future__ import annotations

from archbench.kernels.mixing_block._layers import FourierMixing
from archbench.models.token_mixing import TokenMixingCase
from archbench.models.token_mixing._model import Factory, factory
from archbench.track import Contender


def _build(case: TokenMixingCase) -> Factory:
    return factory(case, lambda layer: FourierMixing(norm="ortho"))


CONTENDER: Contender[TokenMixingCase] = Contender(build=_build)
