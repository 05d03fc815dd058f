"""The weights as numbers again, once: torch's own linear layer in float32, or in bfloat16 where x is.

Reads eight (or four) times the bytes; computes nothing that depends on the codes.
"""

from __future__ import annotations

from archbench.kernels.int4_linear import Int4Case
from archbench.track import Call, Contender


def build(case: Int4Case) -> Call:
    import torch
    from torch import Tensor

    from archbench.kernels.int4_linear._weights import matrices

    dtype = torch.bfloat16 if case.kind == "w4a16" else torch.float32
    weights = [torch.from_numpy(matrix.dense()).to(dtype) for matrix in matrices(case)]

    def dense(x: Tensor) -> Tensor:
        nonlocal weights
        if weights[0].device != x.device:
            weights = [weight.to(x.device) for weight in weights]
        y = x.new_empty(case.layers, case.tokens, case.outputs)
        for weight, out in zip(weights, y, strict=True):
            torch.mm(x, weight.T, out=out)
        return y

    return dense


CONTENDER: Contender[Int4Case] = Contender(build=build, family="torch")
