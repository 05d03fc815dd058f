"""torchao's weight-only 4 bits: a weight that is a tensor subclass, in the packing of the device, under a plain linear.

On CPUs that is ``Int4OpaqueTensor``, on GPUs ``Int4TilePackedTo4dTensor``; both call PyTorch's kernels for tiles of
codes. They are made from the case's codes and scales and not by torchao's own quantiser, so the weights are exact.
Activations are rounded to bfloat16 where the case allows it: that is the type these kernels are written for. torchao's
kernels for 8-bit activations are not in its published builds for x86.

Source: https://github.com/pytorch/ao (torchao/prototype/quantization/int4,
torchao/quantization/quantize_/workflows/int4)
"""

from __future__ import annotations

import torch
from torch import Tensor

from archbench.kernels.int4_linear import Int4Case
from archbench.kernels.int4_linear._weights import ZERO, Quantised, matrices
from archbench.quiet import quiet_import
from archbench.track import Call, Contender, Unavailable

with quiet_import():
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor
    from torchao.quantization import Int4TilePackedTo4dTensor

GROUPS = (32, 64, 128)
CPU_ROWS, CPU_COLUMNS = 16, 32  # outputs and inputs come in tiles of so many
GPU_ROWS, GPU_COLUMNS, INNER_TILES = 8, 1024, 8


def scales_and_zeros(matrix: Quantised, dtype: torch.dtype) -> Tensor:
    """(K / G, N, 2). A weight is (code - 8) * scale + zero; the zeros are zero."""
    scales = torch.from_numpy(matrix.scales).T
    return torch.stack((scales, torch.zeros_like(scales)), dim=-1).to(dtype).contiguous()


def on_cpu(matrix: Quantised, dtype: torch.dtype) -> Tensor:
    codes = torch._convert_weight_to_int4pack_for_cpu(torch.from_numpy(matrix.codes).int(), 1)
    return Int4OpaqueTensor(codes, scales_and_zeros(matrix, dtype), [1, matrix.group], torch.Size(matrix.codes.shape))


def padded(matrix: Quantised) -> tuple[Tensor, Tensor]:
    """For a GPU: bytes (N, K / 2), the first code in the high half, and scales; both filled up to whole tiles."""
    outputs, inputs = matrix.codes.shape
    right, below = -inputs % GPU_COLUMNS, -outputs % GPU_ROWS
    codes = torch.nn.functional.pad(torch.from_numpy(matrix.codes), (0, right, 0, below), value=ZERO)
    both = scales_and_zeros(matrix, torch.bfloat16)
    both = torch.nn.functional.pad(both, (0, 0, 0, below, 0, -(-right // matrix.group)))
    return codes[:, ::2] << 4 | codes[:, 1::2], both


def on_gpu(matrix: Quantised, device: torch.device) -> Tensor:
    codes, both = (tensor.to(device) for tensor in padded(matrix))
    tiled = torch._convert_weight_to_int4pack(codes, INNER_TILES)
    return Int4TilePackedTo4dTensor(tiled, both, [1, matrix.group], torch.Size(matrix.codes.shape))


class Linear:
    """The matrices of a case, packed for the device of the first x."""

    def __init__(self, case: Int4Case) -> None:
        self._case = case
        self._dtype = torch.float32 if case.kind == "w4a32" else torch.bfloat16
        self._weights: list[Tensor] = []

    def _packed(self, x: Tensor) -> list[Tensor]:
        found = matrices(self._case)
        if x.is_cuda:
            if self._dtype == torch.float32:
                raise Unavailable("takes no float32 on a GPU")
            return [on_gpu(matrix, x.device) for matrix in found]
        if self._case.outputs % CPU_ROWS or self._case.inputs % CPU_COLUMNS:
            sizes = f"{self._case.outputs} x {self._case.inputs}"
            raise Unavailable(f"outputs in multiples of {CPU_ROWS} and inputs of {CPU_COLUMNS} on a CPU, not {sizes}")
        return [on_cpu(matrix, self._dtype) for matrix in found]

    def __call__(self, x: Tensor) -> Tensor:
        """x (M, K) -> y (layers, M, N), in the dtype of x."""
        self._weights = self._weights or self._packed(x)
        rounded = x.to(self._dtype)
        return torch.stack([torch.nn.functional.linear(rounded, weight) for weight in self._weights]).to(x.dtype)


def build(case: Int4Case) -> Call:
    if case.group not in GROUPS:
        raise Unavailable(f"groups of {', '.join(map(str, GROUPS))} only, not {case.group}")
    return Linear(case)


CONTENDER: Contender[Int4Case] = Contender(build=build, family="peer")
