"""What the two packages that follow the TensorFlow code of GShard cannot do, and why.

Source: the packages' own code, st-moe-pytorch 0.1.8 and mixture-of-experts 0.2.3
"""

from __future__ import annotations

from archbench.kernels.moe_ffn import MoeCase
from archbench.track import Unavailable


def refuse(case: MoeCase, package: str) -> None:
    """Raises Unavailable where the package could not answer the case as it is."""
    if case.router == "gshard":
        raise Unavailable(f"{package} draws second experts by random numbers of its own, which cannot be given")
    if case.router != "topk":
        raise Unavailable(f"{package} has no {case.router.replace('_', ' ')} routing")
    if case.dtype == "bf16":
        raise Unavailable(f"{package} multiplies bf16 tokens by float32 masks, which torch refuses")
