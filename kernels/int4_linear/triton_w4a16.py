"""Triton kernels, written for this benchmark: 4-bit weights stay packed until they are in registers, bfloat16 x.

One token is a stream of weights: loads of 16 bytes a thread, codes that become floats by a mask, float32 sums. Several
tokens are products on tensor cores with float32 sums. All matrices of the case are one launch; where that fills no GPU,
parts of K run side by side and are added up in a fixed order. Not measured on a GPU: tiles were chosen by counting and
compile without spills.

Source: Frantar et al. 2024, arXiv:2408.11743 (what such a kernel has to reach); docs/notes/int4_linear.md
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import triton
from torch import Tensor

from archbench.kernels.int4_linear import Int4Case
from archbench.kernels.int4_linear._triton_token import merge, one_token
from archbench.kernels.int4_linear._triton_tokens import many_tokens
from archbench.kernels.int4_linear._weights import ZERO, Quantised, matrices
from archbench.track import Call, Contender, Unavailable

BLOCK = 32  # columns that share a scale in the kernels
CHUNK = 64  # columns of a tile of bytes
ROWS, BLOCKS = 8, 32  # of a step of a program for one token, one warp: 128 bytes of weights a thread
WARPS, PROGRAMS = 2112, 264  # 16 warps, two programs for each multiprocessor of an H100: as many are wanted at least
EXPONENT = 0x41800000  # bits of 16.0
MERGED = 1024  # outputs of a program that adds up parts


@dataclass(frozen=True)
class Tiles:
    """How a product of several tokens is cut: BLOCK_N rows of a matrix times BLOCK_M tokens."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def tiles(tokens: int) -> Tiles:
    """Few tokens are a stream of weights and want many loads on their way, many are products and want large tiles."""
    if tokens <= 32:
        return Tiles(16 if tokens <= 16 else 32, 64, 4, 5)
    return Tiles(64, 128, 4, 4) if tokens <= 64 else Tiles(128, 128, 8, 4)


def parts_of(wanted: int, steps: int) -> tuple[int, int]:
    """At most so many parts of K, and the steps of a part; none is empty."""
    wanted = max(1, min(wanted, steps))
    share = triton.cdiv(steps, wanted)
    return triton.cdiv(steps, share), share


def words(matrix: Quantised) -> npt.NDArray[np.int32]:
    """(N, K / 32, 4): word j of a block holds columns 8p + 2j and 8p + 2j + 1 for p = 0 to 3, from its low bits."""
    outputs, inputs = matrix.codes.shape
    nibbles = matrix.codes.reshape(outputs, inputs // BLOCK, 4, 4, 2).transpose(0, 1, 3, 2, 4)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    packed = (nibbles.reshape(*nibbles.shape[:3], 8).astype(np.uint32) << shifts).sum(-1, dtype=np.uint32)
    return packed.view(np.int32)


def chunks(matrix: Quantised) -> npt.NDArray[np.uint8]:
    """(chunks, N, 32): column i of a chunk in the low half of byte i, column 32 + i in the high one."""
    outputs, inputs = matrix.codes.shape
    padded = np.full((outputs, triton.cdiv(inputs, CHUNK) * CHUNK), ZERO, np.uint8)
    padded[:, :inputs] = matrix.codes
    halves = padded.reshape(outputs, -1, 2, CHUNK // 2)
    return np.ascontiguousarray((halves[:, :, 0] | halves[:, :, 1] << 4).transpose(1, 0, 2))


def stored() -> torch.dtype:
    """What the kernels write y in: Triton's interpreter cuts off what does not fit into a bfloat16."""
    return torch.float32 if triton.knobs.runtime.interpret else torch.bfloat16


class Linear:
    """The matrices of a case as the kernels read them, on the device of the first x."""

    def __init__(self, case: Int4Case) -> None:
        found = matrices(case)
        single = case.tokens == 1
        pack = words if single else chunks
        self._codes = torch.from_numpy(np.stack([pack(matrix) for matrix in found]))
        scales = torch.from_numpy(np.stack([matrix.scales for matrix in found]))
        self._scales = (scales if single else scales.transpose(1, 2).contiguous()).bfloat16()
        self._case = case

    def __call__(self, x: Tensor) -> Tensor:
        """x (M, K) -> y (layers, M, N), bfloat16."""
        if self._codes.device != x.device:
            self._codes, self._scales = self._codes.to(x.device), self._scales.to(x.device)
        return self._one(x.contiguous()) if self._case.tokens == 1 else self._many(x.contiguous())

    def _one(self, x: Tensor) -> Tensor:
        case = self._case
        blocks, rows = case.inputs // BLOCK, triton.cdiv(case.outputs, ROWS)
        parts, share = parts_of(WARPS // (rows * case.layers), triton.cdiv(blocks, BLOCKS))
        to = self._room(x, parts)
        one_token[(rows, case.layers, parts)](
            x.view(torch.int32), self._codes, self._scales, to,
            case.outputs, blocks, share * BLOCKS, case.group // BLOCK, EXPONENT,
            ROWS=ROWS, BLOCKS=BLOCKS, num_warps=1,
        )  # fmt: skip
        return self._merged(to)

    def _many(self, x: Tensor) -> Tensor:
        case, cut = self._case, tiles(self._case.tokens)
        steps = triton.cdiv(case.inputs, CHUNK)
        grid = triton.cdiv(case.outputs, cut.block_n), triton.cdiv(case.tokens, cut.block_m)
        parts, share = parts_of(min(PROGRAMS // (grid[0] * grid[1] * case.layers), steps // 4), steps)
        to = self._room(x, parts)
        many_tokens[(*grid, case.layers * parts)](
            x, self._codes, self._scales, to, case.tokens, case.inputs, case.outputs, case.group, steps, share,
            PARTS=parts, BLOCK_M=cut.block_m, BLOCK_N=cut.block_n, WIDEN=triton.knobs.runtime.interpret,
            num_warps=cut.num_warps, num_stages=cut.num_stages,
        )  # fmt: skip
        return self._merged(to)

    def _room(self, x: Tensor, parts: int) -> Tensor:
        """y itself where K is in one part, else a float32 y for each."""
        case = self._case
        dtype = stored() if parts == 1 else torch.float32
        return x.new_empty(parts, case.layers, case.tokens, case.outputs, dtype=dtype)

    def _merged(self, parts: Tensor) -> Tensor:
        y = parts[0]
        if len(parts) > 1:
            y = torch.empty_like(y, dtype=stored())
            merge[(triton.cdiv(y.numel(), MERGED),)](parts, y, y.numel(), PARTS=len(parts), BLOCK=MERGED)
        return y.bfloat16()


def build(case: Int4Case) -> Call:
    if case.kind != "w4a16":
        raise Unavailable("bfloat16 activations: w4a16 only")
    if case.group % BLOCK:
        raise Unavailable(f"groups of multiples of {BLOCK} only, not {case.group}")
    return Linear(case)


CONTENDER: Contender[Int4Case] = Contender(build=build, device="cuda")
