"""Attention in C++ for CPUs: packed keys and values, register tiles, softmax in one pass.

Keys and values are packed once into the order the register tiles read them in, weights stay in the cache, and the
T x T matrix never exists. bf16 is multiplied in pairs where the processor can (AVX-512 BF16) and widened elsewhere.
The backward recomputes the weights, transposed, from the log-sum-exp that the forward saves; a head is one task of it.

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

from archbench.hardware import native
from archbench.kernels.attention import AttentionCase
from archbench.track import Call, Contender, Unavailable

SOURCES = Path(__file__).parent / "_cpu"
DTYPES = ("fp32", "bf16")
MAX_HEAD_DIM = 256


def _numbers(q_BHTD: Tensor, k_BGTD: Tensor, causal: bool) -> tuple[Any, ...]:
    """The leading arguments of both entry points."""
    batch, heads, length, head_dim = q_BHTD.shape
    sizes = (int(q_BHTD.dtype is torch.bfloat16), batch, heads, k_BGTD.shape[1], length, head_dim)
    return (*sizes, ctypes.c_float(1 / math.sqrt(head_dim)), int(causal), torch.get_num_threads())


def _addresses(*tensors: Tensor | None) -> tuple[ctypes.c_void_p, ...]:
    return tuple(ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors)


def forward(
    library: ctypes.CDLL, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, causal: bool, save: bool
) -> tuple[Tensor, Tensor | None]:
    """out_BHTD, and the natural log-sum-exp of each row's scaled scores where ``save``. Contiguous fp32 or bf16."""
    q_BHTD, k_BGTD, v_BGTD = q_BHTD.contiguous(), k_BGTD.contiguous(), v_BGTD.contiguous()
    out_BHTD = torch.empty_like(q_BHTD)
    lse_BHT = q_BHTD.new_empty(q_BHTD.shape[:3], dtype=torch.float32) if save else None
    pointers = _addresses(q_BHTD, k_BGTD, v_BGTD, out_BHTD, lse_BHT)
    if library.archbench_attention(*_numbers(q_BHTD, k_BGTD, causal), *pointers):
        raise MemoryError("no memory for the packed keys and values")
    return out_BHTD, lse_BHT


def backward(
    library: ctypes.CDLL,
    q_BHTD: Tensor,
    k_BGTD: Tensor,
    v_BGTD: Tensor,
    out_BHTD: Tensor,
    dout_BHTD: Tensor,
    lse_BHT: Tensor,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq_BHTD, dk_BGTD, dv_BGTD from what ``forward`` returned and the gradient of its output."""
    q_BHTD, k_BGTD, v_BGTD, dout_BHTD = (x.contiguous() for x in (q_BHTD, k_BGTD, v_BGTD, dout_BHTD))
    grads = (torch.empty_like(q_BHTD), torch.empty_like(k_BGTD), torch.empty_like(v_BGTD))
    pointers = _addresses(q_BHTD, k_BGTD, v_BGTD, out_BHTD, dout_BHTD, lse_BHT, *grads)
    if library.archbench_attention_backward(*_numbers(q_BHTD, k_BGTD, causal), *pointers):
        raise MemoryError("no memory for the gradients of keys and values")
    return grads


class Attention(torch.autograd.Function):
    """Forward and backward in C++."""

    @staticmethod
    def forward(ctx: Any, library: ctypes.CDLL, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        out, lse = forward(library, q, k, v, causal, save=True)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.library, ctx.causal = library, causal
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        return None, *backward(ctx.library, q, k, v, out, grads[0], lse, ctx.causal), None


def attention(library: ctypes.CDLL, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, *, causal: bool) -> Tensor:
    """``softmax(q k^T / sqrt(D)) v``. Returns out_BHTD."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q_BHTD, k_BGTD, v_BGTD)):
        out: Tensor = Attention.apply(library, q_BHTD, k_BGTD, v_BGTD, causal)
        return out
    return forward(library, q_BHTD, k_BGTD, v_BGTD, causal, save=False)[0]


def build(case: AttentionCase) -> Call:
    if case.dtype not in DTYPES:
        raise Unavailable(f"fp32 and bf16 only, not {case.dtype}")
    if case.head_dim > MAX_HEAD_DIM:
        raise Unavailable(f"head sizes up to {MAX_HEAD_DIM} only")
    return partial(attention, native.load(SOURCES), causal=case.causal)


CONTENDER: Contender[AttentionCase] = Contender(build=build, device="cpu")
