"""FlashAttention-2 in Triton, written for this benchmark: forward and backward, causal, grouped KV heads.

The forward keeps a block of queries on the chip and streams keys and values past it; only the output and one
logsumexp per row leave. The backward recomputes the weights from that in two kernels, one over blocks of keys for dK
and dV and one over blocks of queries for dQ, so that nothing is added up atomically and results do not depend on the
order of execution. Blocks above the diagonal are never visited. A KV head is read by all query heads that share it,
never copied. Block sizes are fixed per head size and dtype; they were chosen to compile without spills, not tuned.

Source: Dao 2023, arXiv:2307.08691
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from archbench.kernels.attention import AttentionCase
from archbench.kernels.attention import _triton_flash_kernels as kernels
from archbench.track import Call, Contender, Unavailable

HEAD_DIMS = (64, 128)
ROW_SUM_BLOCK = 64


@dataclass(frozen=True)
class Config:
    """How a kernel is launched."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Configs:
    """The configurations of one head size and element size."""

    forward: Config
    keys: Config  # backward_keys: dK and dV
    queries: Config  # backward_queries: dQ


def configs(head_dim: int, dtype: torch.dtype) -> Configs:
    """Configurations for a head size, the same on every GPU: they fit into the 99 KiB of shared memory of sm_86.

    In half precision none spills a register on sm_80 or sm_90 (Triton 3.7); in float32 a kernel may spill a few.
    """
    if dtype is torch.float32:  # exact products run on the ordinary cores, out of registers
        small = Config(32, 32 if head_dim == 64 else 16, 8, 1)
        return Configs(small, small, small)
    if head_dim == 64:
        return Configs(Config(128, 64, 8, 3), Config(32, 128, 8, 2), Config(128, 64, 8, 2))
    return Configs(Config(128, 32, 8, 3), Config(32, 64, 8, 2), Config(64, 64, 8, 2))


@torch.library.custom_op("archbench::triton_flash_forward", mutates_args=())
def flash_forward(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """out_BHTD and the rows' logsumexp in units of log 2, float32 [B, H, T]."""
    q_BHTD, k_BGTD, v_BGTD = q_BHTD.contiguous(), k_BGTD.contiguous(), v_BGTD.contiguous()
    batch, heads, length, head_dim = q_BHTD.shape
    out_BHTD = torch.empty_like(q_BHTD)
    logsumexp = q_BHTD.new_empty(batch, heads, length, dtype=torch.float32)
    config = configs(head_dim, q_BHTD.dtype).forward
    kernels.forward[triton.cdiv(length, config.block_q), batch * heads](
        q_BHTD,
        k_BGTD,
        v_BGTD,
        out_BHTD,
        logsumexp,
        heads // k_BGTD.shape[1],
        length,
        math.log2(math.e) / math.sqrt(head_dim),
        HEAD_DIM=head_dim,
        CAUSAL=causal,
        BLOCK_Q=config.block_q,
        BLOCK_K=config.block_k,
        WIDEN=triton.knobs.runtime.interpret,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out_BHTD, logsumexp


@torch.library.custom_op("archbench::triton_flash_backward", mutates_args=())
def flash_backward(
    q_BHTD: Tensor,
    k_BGTD: Tensor,
    v_BGTD: Tensor,
    out_BHTD: Tensor,
    logsumexp: Tensor,
    dout_BHTD: Tensor,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq_BHTD, dk_BGTD, dv_BGTD."""
    q_BHTD, k_BGTD, v_BGTD = q_BHTD.contiguous(), k_BGTD.contiguous(), v_BGTD.contiguous()
    out_BHTD, dout_BHTD = out_BHTD.contiguous(), dout_BHTD.contiguous()
    batch, heads, length, head_dim = q_BHTD.shape
    groups = k_BGTD.shape[1]
    dq_BHTD, dk_BGTD, dv_BGTD = (torch.empty_like(tensor) for tensor in (q_BHTD, k_BGTD, v_BGTD))
    row_sum = torch.empty_like(logsumexp)
    kernels.row_sums[triton.cdiv(length, ROW_SUM_BLOCK), batch * heads](
        out_BHTD, dout_BHTD, row_sum, length, HEAD_DIM=head_dim, BLOCK_Q=ROW_SUM_BLOCK
    )
    scale = 1 / math.sqrt(head_dim)
    given = (q_BHTD, k_BGTD, v_BGTD, dout_BHTD, logsumexp, row_sum)
    sizes = (heads // groups, length, math.log2(math.e) * scale, scale)
    common = {"HEAD_DIM": head_dim, "CAUSAL": causal, "WIDEN": triton.knobs.runtime.interpret}
    chosen = configs(head_dim, q_BHTD.dtype)
    config = chosen.keys
    kernels.backward_keys[triton.cdiv(length, config.block_k), batch * groups](
        *given,
        dk_BGTD,
        dv_BGTD,
        *sizes,
        **common,
        BLOCK_Q=config.block_q,
        BLOCK_K=config.block_k,
        EVEN=length % config.block_q == 0,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    config = chosen.queries
    kernels.backward_queries[triton.cdiv(length, config.block_q), batch * heads](
        *given,
        dq_BHTD,
        *sizes,
        **common,
        BLOCK_Q=config.block_q,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return dq_BHTD, dk_BGTD, dv_BGTD


@flash_forward.register_fake
def _(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    return q_BHTD.new_empty(q_BHTD.shape), q_BHTD.new_empty(q_BHTD.shape[:3], dtype=torch.float32)


@flash_backward.register_fake
def _(
    q_BHTD: Tensor,
    k_BGTD: Tensor,
    v_BGTD: Tensor,
    out_BHTD: Tensor,
    logsumexp: Tensor,
    dout_BHTD: Tensor,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return q_BHTD.new_empty(q_BHTD.shape), k_BGTD.new_empty(k_BGTD.shape), v_BGTD.new_empty(v_BGTD.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: tuple[Tensor, Tensor]) -> None:
    q_BHTD, k_BGTD, v_BGTD, ctx.causal = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q_BHTD, k_BGTD, v_BGTD, *output)


def _gradients(ctx: Any, dout_BHTD: Tensor, _: Any) -> tuple[Tensor, Tensor, Tensor, None]:
    return (*flash_backward(*ctx.saved_tensors, dout_BHTD, ctx.causal), None)


flash_forward.register_autograd(_gradients, setup_context=_keep)


def _build(case: AttentionCase) -> Call:
    if case.head_dim not in HEAD_DIMS:
        raise Unavailable(f"its kernels are for head sizes {' and '.join(map(str, HEAD_DIMS))}")
    if case.dtype == "fp64":
        raise Unavailable("its kernels have no fp64")

    def attention(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        out_BHTD, _ = flash_forward(q_BHTD, k_BGTD, v_BGTD, case.causal)
        return out_BHTD

    return attention


CONTENDER: Contender[AttentionCase] = Contender(build=_build, device="cuda")
