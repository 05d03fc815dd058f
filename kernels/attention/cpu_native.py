"""Attention in C++ for CPUs: packed keys and values, register tiles, softmax in one pass.

Keys and values are packed once into the order the register tiles read them in, weights stay in the cache, and the
T x T matrix never exists. bf16 is multiplied in pairs where the processor can (AVX-512 BF16) and widened elsewhere.
The backward is torch's own flash kernel for CPUs, from the log-sum-exp this forward saves.

Source: Milakov & Gimelshein 2018, arXiv:1805.02867; Dao 2023, arXiv:2307.08691
"""

from __future__ import annotations

import ctypes
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archbench.kernels import native
from archbench.kernels.attention import AttentionCase
from archbench.track import Call, Contender, Unavailable

SOURCE = Path(__file__).parent / "_cpu" / "flash_attention.cpp"
DTYPES = {"fp32": 0, "bf16": 1}


def forward(
    library: ctypes.CDLL, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, causal: bool, save: bool
) -> tuple[Tensor, Tensor | None]:
    """out_BHTD, and the natural log-sum-exp of each row's scaled scores where ``save``. Contiguous fp32 or bf16."""
    batch, heads, length, head_dim = q_BHTD.shape
    q_BHTD, k_BGTD, v_BGTD = q_BHTD.contiguous(), k_BGTD.contiguous(), v_BGTD.contiguous()
    out_BHTD = torch.empty_like(q_BHTD)
    lse_BHT = q_BHTD.new_empty((batch, heads, length), dtype=torch.float32) if save else None
    failed = library.archbench_attention(
        int(q_BHTD.dtype is torch.bfloat16),
        batch,
        heads,
        k_BGTD.shape[1],
        length,
        head_dim,
        ctypes.c_float(1 / math.sqrt(head_dim)),
        int(causal),
        torch.get_num_threads(),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (q_BHTD, k_BGTD, v_BGTD, out_BHTD)),
        ctypes.c_void_p(lse_BHT.data_ptr() if lse_BHT is not None else None),
    )
    if failed:
        raise MemoryError("no memory for the packed keys and values")
    return out_BHTD, lse_BHT


class Attention(torch.autograd.Function):
    """Forward in C++, backward by torch."""

    @staticmethod
    def forward(ctx: Any, library: ctypes.CDLL, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        out, lse = forward(library, q, k, v, causal, save=True)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.causal = causal
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q_BHTD, k_BGTD, v_BGTD, out_BHTD, lse_BHT = ctx.saved_tensors
        shared = q_BHTD.shape[1] // k_BGTD.shape[1]
        k_BHTD, v_BHTD = (x.repeat_interleave(shared, 1) if shared > 1 else x for x in (k_BGTD, v_BGTD))
        dq_BHTD, dk_BHTD, dv_BHTD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grads[0], q_BHTD, k_BHTD, v_BHTD, out_BHTD, lse_BHT, 0.0, ctx.causal
        )
        if shared > 1:
            dk_BHTD, dv_BHTD = (x.unflatten(1, (-1, shared)).sum(2) for x in (dk_BHTD, dv_BHTD))
        return None, dq_BHTD, dk_BHTD, dv_BHTD, None


def attention(library: ctypes.CDLL, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, *, causal: bool) -> Tensor:
    """``softmax(q k^T / sqrt(D)) v``. Returns out_BHTD."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q_BHTD, k_BGTD, v_BGTD)):
        out: Tensor = Attention.apply(library, q_BHTD, k_BGTD, v_BGTD, causal)
        return out
    return forward(library, q_BHTD, k_BGTD, v_BGTD, causal, save=False)[0]


def build(case: AttentionCase) -> Call:
    if case.dtype not in DTYPES:
        raise Unavailable(f"fp32 and bf16 only, not {case.dtype}")
    return partial(attention, native.load(SOURCE), causal=case.causal)


CONTENDER: Contender[AttentionCase] = Contender(build=build, device="cpu")
