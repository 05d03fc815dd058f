"""The configurations ``triton_flash`` chooses from, by kernel, head size, dtype and compute capability.

Each was compiled for sm_80 or sm_90 with Triton 3.6 and 3.7; what spilled more than a few words is not here
(docs/notes/attention.md has the table). What is left is for the clock to decide.

Source: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Kernel = Literal["forward", "keys", "queries", "fused"]
KERNELS: tuple[Kernel, ...] = ("forward", "keys", "queries", "fused")


@dataclass(frozen=True)
class Config:
    """How a kernel is compiled."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int
    tma: bool = False  # tiles move by the copy engine of sm_90


# (block_q, block_k, num_warps, num_stages) of half precision; the first is what the interpreter runs.
_HOPPER: dict[tuple[Kernel, int], tuple[tuple[int, int, int, int], ...]] = {
    ("forward", 64): ((128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 4, 3), (64, 128, 4, 3), (64, 64, 4, 3)),
    ("forward", 128): ((128, 128, 8, 2), (128, 64, 8, 3), (64, 128, 4, 2), (64, 64, 4, 3)),
    ("keys", 64): ((64, 128, 8, 2), (128, 64, 8, 2), (64, 64, 4, 2)),
    ("keys", 128): ((64, 128, 8, 2), (64, 64, 4, 2)),
    ("queries", 64): ((128, 128, 8, 2), (128, 64, 8, 3), (64, 64, 4, 3)),
    ("queries", 128): ((128, 128, 8, 1), (128, 64, 8, 2), (64, 64, 4, 2)),
    ("fused", 64): ((64, 128, 8, 2), (64, 128, 8, 3), (128, 64, 8, 2), (64, 64, 4, 2)),
    ("fused", 128): ((64, 128, 8, 2), (32, 128, 8, 2), (64, 64, 8, 2)),
}
_AMPERE: dict[tuple[Kernel, int], tuple[tuple[int, int, int, int], ...]] = {
    ("forward", 64): ((128, 64, 8, 3), (128, 64, 4, 3), (128, 32, 4, 3), (64, 64, 4, 3)),
    ("forward", 128): ((128, 32, 8, 3), (64, 32, 4, 3), (64, 64, 4, 2)),
    ("keys", 64): ((32, 128, 8, 2), (64, 128, 8, 2)),
    ("keys", 128): ((32, 64, 8, 2), (64, 64, 8, 2)),
    ("queries", 64): ((128, 64, 8, 2), (128, 32, 8, 3), (64, 64, 4, 2)),
    ("queries", 128): ((64, 64, 8, 2), (128, 32, 8, 2), (64, 32, 4, 2)),
    ("fused", 64): ((32, 128, 8, 2), (32, 64, 4, 2)),
    ("fused", 128): ((32, 64, 8, 2), (64, 64, 8, 2)),
}


def space(kernel: Kernel, head_dim: int, dtype: torch.dtype, major: int) -> tuple[Config, ...]:
    """The configurations for a head size on compute capability ``major``.x; none: the kernel is not for the dtype."""
    if dtype is torch.float32:  # exact products run on the ordinary cores, out of registers
        small = Config(32, 32 if head_dim == 64 else 16, 8, 1)
        return () if kernel == "fused" else (small,)
    if major == 9:
        return tuple(Config(*sizes, tma=True) for sizes in _HOPPER[kernel, head_dim])
    return tuple(Config(*sizes) for sizes in _AMPERE[kernel, head_dim])


def shared_bytes(kernel: Kernel, config: Config, head_dim: int, dtype: torch.dtype) -> int:
    """The least shared memory a block takes: tiles that stay and stages of those that stream past.

    In float32 and on sm_80 the tile that stays may live in registers; it is not counted there.
    """
    stays, streams = (
        (config.block_q, config.block_k) if kernel in ("forward", "queries") else (config.block_k, config.block_q)
    )
    row = head_dim * dtype.itemsize
    tiles = {"forward": 1, "queries": 2, "keys": 2, "fused": 2}[kernel] * config.tma
    return stays * row * tiles + 2 * streams * row * (config.num_stages if config.tma else config.num_stages - 1)
