"""torch.nn.attention.flex_attention, compiled; the causal mask is a block mask, so masked blocks are skipped.

On CUDA it becomes a Triton template with the mask inlined, on CPU a C++ template that has no backward.

Source: Dong et al. 2024, arXiv:2412.05496
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from archbench.kernels.attention import AttentionCase
from archbench.track import Call, Contender, Unavailable


def _sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


@cache
def _block_mask(length: int, device: str) -> BlockMask:
    return create_block_mask(_sees, None, None, length, length, device=device)


def _build(case: AttentionCase) -> Call:
    if case.dtype == "fp64":
        raise Unavailable("flex_attention has no fp64")
    # Every case is compiled alone and for its own shapes, in a process that asks many as in one that asks a single one.
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False)

    def attention(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        device = q_BHTD.device.type
        if case.backward and device == "cpu":
            raise Unavailable("flex_attention has no backward on CPU")
        # The device is known only here; the first call, which also compiles, is the gate's and never timed.
        mask = _block_mask(case.length, device) if case.causal else None
        return compiled(q_BHTD, k_BGTD, v_BGTD, block_mask=mask, enable_gqa=case.grouped)

    return attention


CONTENDER: Contender[AttentionCase] = Contender(build=_build, family="compiler")
