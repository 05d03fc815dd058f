"""PyTorch's own kernel for 4-bit weights, which gpt-fast and torchao call: codes packed in tiles, scales beside zeros.

Weights are ``(code - 8) * scale + zero`` there; the zeros are zero. Activations stay as they are, so it also takes part
where they may be rounded. In float32 it multiplies number by number; ``torchao_int4`` calls it in bfloat16, which has
vectors.

Source: https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/LinearAlgebra.cpp (_weight_int4pack_mm)
"""

from __future__ import annotations

from archbench.kernels.int4_linear import Int4Case
from archbench.track import Call, Contender, Unavailable

GROUPS = (32, 64, 128, 256)
ROWS = 16  # outputs come in tiles of so many
COLUMNS = 32


def build(case: Int4Case) -> Call:
    if case.group not in GROUPS:
        raise Unavailable(f"groups of {', '.join(map(str, GROUPS))} only, not {case.group}")
    if case.outputs % ROWS or case.inputs % COLUMNS:
        raise Unavailable(f"outputs in multiples of {ROWS} and inputs of {COLUMNS}, not {case.outputs} x {case.inputs}")
    import torch
    from torch import Tensor

    from archbench.kernels.int4_linear._weights import matrices

    dtype = torch.bfloat16 if case.kind == "w4a16" else torch.float32
    packed = []
    for matrix in matrices(case):
        codes = torch.from_numpy(matrix.codes).int()
        scales = torch.from_numpy(matrix.scales).T
        both = torch.stack((scales, torch.zeros_like(scales)), dim=-1).to(dtype).contiguous()  # (K / G, N, 2)
        packed.append((torch._convert_weight_to_int4pack_for_cpu(codes, 1), both))

    def int4pack(x: Tensor) -> Tensor:
        found = [torch._weight_int4pack_mm_for_cpu(x, codes, case.group, both) for codes, both in packed]
        return torch.stack(found)

    return int4pack


CONTENDER: Contender[Int4Case] = Contender(build=build, device="cpu", family="torch")
