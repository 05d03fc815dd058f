"""4-bit weights made into numbers on every call, then torch's linear layer: what packing alone is worth.

Memory falls to an eighth, time does not: the numbers are written and read again.
"""

from __future__ import annotations

from archbench.kernels.int4_linear import Int4Case
from archbench.track import Call, Contender


def build(case: Int4Case) -> Call:
    import torch
    from torch import Tensor

    from archbench.kernels.int4_linear._weights import ZERO, matrices

    packed = [(torch.from_numpy(m.pairs()), torch.from_numpy(m.scales)) for m in matrices(case)]
    shape = (case.outputs, case.inputs // case.group, case.group)

    def unpacked(x: Tensor) -> Tensor:
        nonlocal packed
        if packed[0][0].device != x.device:
            packed = [(pairs.to(x.device), scales.to(x.device)) for pairs, scales in packed]
        y = x.new_empty(case.layers, case.tokens, case.outputs)
        for (pairs, scales), out in zip(packed, y, strict=True):
            codes = torch.stack((pairs & 15, pairs >> 4), dim=-1).view(shape)
            weight = ((codes.float() - ZERO) * scales[..., None]).to(x.dtype).view(case.outputs, case.inputs)
            torch.mm(x, weight.T, out=out)
        return y

    return unpacked


CONTENDER: Contender[Int4Case] = Contender(build=build)
