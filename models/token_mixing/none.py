"""No mixing: feed-forward layers only. What a model reaches that sees each token alone, and its position.

Source: Lee-Thorp et al. 2021, arXiv:2105.03824 ("FF-only")
"""

from __future__ import annotations

from archbench.models.token_mixing import TokenMixingCase
from archbench.models.token_mixing._model import Factory, factory
from archbench.track import Contender


def _build(case: TokenMixingCase) -> Factory:
    return factory(case, lambda layer: None)


CONTENDER: Contender[TokenMixingCase] = Contender(build=_build)
