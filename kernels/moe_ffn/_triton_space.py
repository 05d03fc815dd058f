"""The configurations ``triton_grouped`` chooses from, by kernel, dtype and compute capability.

Each was compiled for sm_80 or sm_90; none spills more than ten words (docs/notes/moe_ffn_triton.md has the table). What
is left is for the clock to decide. Rows of a tile are not: the tiles of a call are laid out once, for all its kernels.

Source: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Kernel = Literal["in", "out", "hidden", "weights"]
KERNELS: tuple[Kernel, ...] = ("in", "out", "hidden", "weights")
FEW = 64  # rows of an expert on average; below that, tiles of as many are mostly full


@dataclass(frozen=True)
class Config:
    """How a kernel is compiled. For ``in`` a tile is block_n columns of each half."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    tma: bool = False  # tiles move by the copy engine of sm_90
    stays: bool = False  # as many programs as multiprocessors, each with tile after tile


# (block_n, block_k, num_warps, num_stages, stays) by rows of a tile, half precision.
_Sizes = tuple[tuple[int, int, int, int, bool], ...]
_HOPPER: dict[tuple[Kernel, int], _Sizes] = {
    ("in", 128): ((128, 64, 8, 3, False), (128, 64, 8, 3, True), (128, 64, 8, 4, False), (64, 64, 4, 3, False)),
    ("out", 128): ((256, 64, 8, 3, False), (256, 64, 8, 3, True), (256, 64, 8, 4, False), (128, 64, 4, 3, False)),
    ("hidden", 128): ((128, 64, 8, 4, False), (128, 64, 8, 3, False)),
    ("weights", 128): ((256, 64, 8, 3, False), (256, 64, 8, 4, False), (128, 64, 4, 3, False)),
    ("in", 64): ((128, 64, 4, 3, False), (64, 64, 4, 4, False)),
    ("out", 64): ((256, 64, 4, 3, False), (128, 64, 4, 4, False)),
    ("hidden", 64): ((128, 64, 4, 3, False), (64, 64, 4, 4, False)),
}
_AMPERE: dict[tuple[Kernel, int], _Sizes] = {
    ("in", 128): ((64, 64, 8, 3, False), (64, 32, 8, 4, False)),
    ("out", 128): ((128, 64, 8, 3, False), (128, 32, 4, 3, False), (256, 32, 8, 3, False)),
    ("hidden", 128): ((128, 32, 8, 3, False), (64, 64, 8, 3, False)),
    ("weights", 128): ((128, 64, 8, 3, False), (128, 32, 4, 3, False), (256, 32, 8, 3, False)),
    ("in", 64): ((64, 64, 4, 3, False), (32, 64, 4, 3, False)),
    ("out", 64): ((128, 64, 4, 3, False), (64, 64, 4, 3, False)),
    ("hidden", 64): ((64, 64, 4, 3, False), (64, 32, 4, 3, False)),
}
_EXACT: dict[Kernel, Config] = {  # float32: products on the ordinary cores, out of registers
    "in": Config(64, 32, 32, 8, 2),
    "out": Config(64, 64, 32, 8, 2),
    "hidden": Config(64, 64, 32, 8, 2),
    "weights": Config(64, 64, 32, 8, 2),
}


def rows_of_a_tile(assignments: int, experts: int, dtype: torch.dtype) -> int:
    """By how many rows an expert gets on average, which the host knows."""
    return 64 if dtype is torch.float32 or assignments < FEW * experts else 128


def space(kernel: Kernel, block_m: int, dtype: torch.dtype, major: int) -> tuple[Config, ...]:
    """The configurations for tiles of ``block_m`` rows on compute capability ``major``.x, best guess first.

    Tiles of ``weights`` are not rows of the list, and always 128 or, in float32, 64 high.
    """
    if dtype is torch.float32:
        return (_EXACT[kernel],)
    height = 128 if kernel == "weights" else block_m
    sizes = (_HOPPER if major == 9 else _AMPERE)[kernel, height]
    copied = major == 9 and kernel != "weights"  # an expert's rows end where no copy engine would
    return tuple(Config(height, n, k, warps, stages, copied, stays) for n, k, warps, stages, stays in sizes)


def shared_bytes(kernel: Kernel, config: Config, dtype: torch.dtype) -> int:
    """The least shared memory a block takes: stages of its two tiles; one less where threads do the loading."""
    columns = config.block_n * (2 if kernel == "in" else 1)
    stages = config.num_stages if config.tma else config.num_stages - 1
    return (config.block_m + columns) * config.block_k * dtype.itemsize * stages
