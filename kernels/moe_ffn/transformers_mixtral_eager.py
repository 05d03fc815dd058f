"""Mixtral's router and experts as Hugging Face transformers has them, with its loop over the experts.

The implementation for who asks for ``experts_implementation="eager"``. On two cores its forward took 0.7 to 1.1 of the
time of the one a model is loaded with (``transformers_mixtral``), which waits for fresh memory; with gradients 1.1 to
1.3 of it, since the loop fills a gradient of all experts for each.

Source: https://github.com/huggingface/transformers; Jiang et al. 2024, arXiv:2401.04088
"""

from __future__ import annotations

from archbench.kernels.moe_ffn import MoeCase
from archbench.kernels.moe_ffn._mixtral import layer
from archbench.track import Contender

CONTENDER: Contender[MoeCase] = Contender(build=lambda case: layer(case, "eager"), family="peer")
