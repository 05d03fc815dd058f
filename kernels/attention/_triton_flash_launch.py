"""The kernels of ``triton_flash`` on tensors, each with a configuration that is given.

All tensors are dense, [B, H, T, D] for q, out, dout, dq and [B, G, T, D] for k, v, dk, dv; to a kernel they are
[heads, T, D]. B batch, H query heads, G KV heads, T length, D head size.

Source: https://triton-lang.org/main/python-api/triton.html
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from archbench.kernels.attention import _triton_flash_backward as split
from archbench.kernels.attention import _triton_flash_forward as once
from archbench.kernels.attention import _triton_flash_fused as fused
from archbench.kernels.attention._triton_flash_space import Config

ROWS = 64  # a block of the kernels that pass over memory once
INTERPRETED_L2_BYTES = 32 * 2**20  # where there is no GPU to ask


@dataclass(frozen=True)
class Saved:
    """What the backward starts from."""

    q_BHTD: Tensor
    k_BGTD: Tensor
    v_BGTD: Tensor
    out_BHTD: Tensor
    logsumexp: Tensor  # float32 [B, H, T], in units of log 2
    dout_BHTD: Tensor
    causal: bool


def dense(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it is strided or starts off the 16 bytes that wide loads and the copy engine need."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


@cache
def _l2_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else INTERPRETED_L2_BYTES


def _section(device: torch.device, head_bytes: int) -> int:
    """How many heads run side by side: what they stream, ``head_bytes`` each, takes half of the L2 cache at most."""
    return max(1, _l2_bytes(device) // 2 // head_bytes)


def _form(tensor: Tensor, rows: int, tma: bool) -> Any:
    """A tensor as a kernel takes it: itself, or a descriptor of tiles of ``rows``."""
    if not tma:
        return tensor
    batch, heads, length, head_dim = tensor.shape
    shape, strides = [batch * heads, length, head_dim], [length * head_dim, head_dim, 1]
    return TensorDescriptor(tensor, shape, strides, [1, rows, head_dim])


def _compile_options(config: Config, head_dim: int, causal: bool) -> dict[str, Any]:
    return {
        "HEAD_DIM": head_dim,
        "CAUSAL": causal,
        "BLOCK_Q": config.block_q,
        "BLOCK_K": config.block_k,
        "TMA": config.tma,
        "WIDEN": triton.knobs.runtime.interpret,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


def _scales(head_dim: int) -> tuple[float, float]:
    """Of scores in units of log 2, and of scores."""
    scale = 1 / math.sqrt(head_dim)
    return math.log2(math.e) * scale, scale


def forward(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, causal: bool, config: Config) -> tuple[Tensor, Tensor]:
    """out_BHTD and the rows' logsumexp."""
    batch, heads, length, head_dim = q_BHTD.shape
    shared = heads // k_BGTD.shape[1]
    out_BHTD = torch.empty_like(q_BHTD)
    logsumexp = q_BHTD.new_empty(batch, heads, length, dtype=torch.float32)
    once.forward[(triton.cdiv(length, config.block_q) * batch * heads,)](
        _form(q_BHTD, config.block_q, config.tma),
        _form(k_BGTD, config.block_k, config.tma),
        _form(v_BGTD, config.block_k, config.tma),
        _form(out_BHTD, config.block_q, config.tma),
        logsumexp,
        batch * heads,
        shared,
        shared * _section(q_BHTD.device, 2 * length * head_dim * k_BGTD.element_size()),
        length,
        _scales(head_dim)[0],
        **_compile_options(config, head_dim, causal),
    )
    return out_BHTD, logsumexp


def row_sums(saved: Saved) -> Tensor:
    """rowsum(dO * O), float32 [B, H, T]."""
    batch, heads, length, head_dim = saved.q_BHTD.shape
    row_sum = torch.empty_like(saved.logsumexp)
    split.row_sums[triton.cdiv(length, ROWS), batch * heads](
        saved.out_BHTD, saved.dout_BHTD, row_sum, length, HEAD_DIM=head_dim, BLOCK_Q=ROWS
    )
    return row_sum


def _streamed(saved: Saved, config: Config) -> tuple[Any, ...]:
    """q, k, v, dout as the kernels take them."""
    rows = (config.block_q, config.block_k, config.block_k, config.block_q)
    tensors = (saved.q_BHTD, saved.k_BGTD, saved.v_BGTD, saved.dout_BHTD)
    return tuple(_form(tensor, size, config.tma) for tensor, size in zip(tensors, rows, strict=True))


def _key_grid(saved: Saved, config: Config) -> tuple[tuple[int], tuple[int, int, int, int]]:
    """The grid over blocks of keys, and heads, shared, section and length for its programs."""
    batch, heads, length, head_dim = saved.q_BHTD.shape
    groups = saved.k_BGTD.shape[1]
    shared = heads // groups
    section = _section(saved.q_BHTD.device, 2 * shared * length * head_dim * saved.q_BHTD.element_size())
    return (triton.cdiv(length, config.block_k) * batch * groups,), (batch * groups, shared, section, length)


def split_keys(saved: Saved, row_sum: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """dk_BGTD and dv_BGTD."""
    length, head_dim = saved.q_BHTD.shape[2:]
    dk_BGTD, dv_BGTD = torch.empty_like(saved.k_BGTD), torch.empty_like(saved.v_BGTD)
    grid, sizes = _key_grid(saved, config)
    split.backward_keys[grid](
        *_streamed(saved, config),
        saved.logsumexp,
        row_sum,
        *(_form(tensor, config.block_k, config.tma) for tensor in (dk_BGTD, dv_BGTD)),
        *sizes,
        *_scales(head_dim),
        EVEN=length % config.block_q == 0,
        **_compile_options(config, head_dim, saved.causal),
    )
    return dk_BGTD, dv_BGTD


def split_queries(saved: Saved, row_sum: Tensor, config: Config) -> Tensor:
    """dq_BHTD."""
    batch, heads, length, head_dim = saved.q_BHTD.shape
    shared = heads // saved.k_BGTD.shape[1]
    dq_BHTD = torch.empty_like(saved.q_BHTD)
    split.backward_queries[(triton.cdiv(length, config.block_q) * batch * heads,)](
        *_streamed(saved, config),
        saved.logsumexp,
        row_sum,
        _form(dq_BHTD, config.block_q, config.tma),
        batch * heads,
        shared,
        shared * _section(saved.q_BHTD.device, 2 * length * head_dim * saved.k_BGTD.element_size()),
        length,
        *_scales(head_dim),
        **_compile_options(config, head_dim, saved.causal),
    )
    return dq_BHTD


def one_pass(saved: Saved, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """dq_BHTD, dk_BGTD, dv_BGTD with five products; dQ meets in integers, 4 bytes an element while it lasts."""
    batch, heads, length, head_dim = saved.q_BHTD.shape
    groups = saved.k_BGTD.shape[1]
    shared, blocks = heads // groups, triton.cdiv(length, ROWS)
    dq_BHTD, dk_BGTD, dv_BGTD = (torch.empty_like(one) for one in (saved.q_BHTD, saved.k_BGTD, saved.v_BGTD))
    bounds = torch.zeros(batch * groups, 2, dtype=torch.int32, device=dq_BHTD.device)
    row_sum, row_bound = torch.empty_like(saved.logsumexp), torch.empty_like(saved.logsumexp)
    sums_BHTD = torch.zeros_like(dq_BHTD, dtype=torch.int32)
    reduce = config.tma and not triton.knobs.runtime.interpret  # the interpreter has no descriptor that adds
    fused.key_bounds[blocks, batch * groups](
        saved.k_BGTD, saved.v_BGTD, bounds, length, HEAD_DIM=head_dim, BLOCK_K=ROWS
    )
    fused.row_bounds[blocks, batch * heads](
        saved.out_BHTD, saved.dout_BHTD, bounds, row_sum, row_bound, shared, length, HEAD_DIM=head_dim, BLOCK_Q=ROWS
    )
    grid, sizes = _key_grid(saved, config)
    fused.backward_fused[grid](
        *_streamed(saved, config),
        saved.logsumexp,
        row_sum,
        row_bound,
        _form(sums_BHTD, config.block_q, reduce),
        *(_form(tensor, config.block_k, config.tma) for tensor in (dk_BGTD, dv_BGTD)),
        *sizes,
        *_scales(head_dim),
        REDUCE=reduce,
        EVEN=length % config.block_q == 0,
        **_compile_options(config, head_dim, saved.causal),
    )
    fused.settle_queries[blocks, batch * heads](
        sums_BHTD, row_bound, dq_BHTD, length, _scales(head_dim)[1], HEAD_DIM=head_dim, BLOCK_Q=ROWS
    )
    return dq_BHTD, dk_BGTD, dv_BGTD
