"""FlashAttention in Triton, written for this benchmark: forward and backward, causal, grouped KV heads, tuned here.

The forward keeps a block of queries on the chip and streams keys and values past it; only the output and one
logsumexp per row leave. The backward recomputes the weights from that, in two kernels of seven products together or in
one of five, whichever is faster; either way the result does not depend on the order of execution. Blocks above the
diagonal are never visited, only blocks on it are masked, and the longest rows start first. A KV head is read by all
query heads that share it, never copied. On sm_90 tiles move by its copy engine. Blocks, warps and stages are chosen by
the clock when a shape is first seen, and remembered on disk.

Source: Dao 2023, arXiv:2307.08691
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler.compiler import max_shared_mem

from archbench.kernels.attention import AttentionCase
from archbench.kernels.attention import _triton_flash_launch as launch
from archbench.kernels.attention._triton_flash_launch import Saved, dense
from archbench.kernels.attention._triton_flash_space import Config, Kernel, shared_bytes, space
from archbench.kernels.triton_tuning import Choice, Launch, Tuner
from archbench.track import Call, Contender, Unavailable

HEAD_DIMS = (64, 128)
TUNER = Tuner("triton_flash", Config, tuple(sorted(Path(__file__).parent.glob("_triton_flash_*.py"))))

# By kernel, shapes, dtype, mask and device; None where the kernel is not for the dtype.
_CHOSEN: dict[tuple[Any, ...], Choice[Config] | None] = {}


@cache
def _gpu(device: torch.device) -> tuple[int, int]:
    """Compute capability's major number, and the bytes of shared memory a block may have."""
    return torch.cuda.get_device_capability(device)[0], max_shared_mem(device.index)


def _decide(kernel: Kernel, q_BHTD: Tensor, k_BGTD: Tensor, causal: bool, run: Launch[Config]) -> Choice[Config] | None:
    """Take the file's word or race the candidates for these shapes."""
    head_dim, dtype = q_BHTD.shape[3], q_BHTD.dtype
    if triton.knobs.runtime.interpret:  # nothing to measure, and any is as right
        candidates = space(kernel, head_dim, dtype, 8)
        return Choice(candidates[0], 0.0) if candidates else None
    major, room = _gpu(q_BHTD.device)
    candidates = tuple(
        one for one in space(kernel, head_dim, dtype, major) if shared_bytes(kernel, one, head_dim, dtype) <= room
    )
    if not candidates:
        return None
    return TUNER.fastest(f"{kernel} {dtype} q{tuple(q_BHTD.shape)} k{tuple(k_BGTD.shape)} {causal=}", candidates, run)


def _choose(kernel: Kernel, q_BHTD: Tensor, k_BGTD: Tensor, causal: bool, run: Launch[Config]) -> Choice[Config] | None:
    """The configuration for these shapes and its seconds; None where the kernel is not for this dtype."""
    key = (kernel, q_BHTD.shape, k_BGTD.shape, q_BHTD.dtype, q_BHTD.device, causal)
    if key not in _CHOSEN:
        _CHOSEN[key] = _decide(kernel, q_BHTD, k_BGTD, causal, run)
    return _CHOSEN[key]


@torch.library.custom_op("archbench::triton_flash_forward", mutates_args=())
def flash_forward(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """out_BHTD and the rows' logsumexp in units of log 2, float32 [B, H, T]."""
    q_BHTD, k_BGTD, v_BGTD = dense(q_BHTD), dense(k_BGTD), dense(v_BGTD)
    chosen = _choose(
        "forward", q_BHTD, k_BGTD, causal, lambda config: launch.forward(q_BHTD, k_BGTD, v_BGTD, causal, config)
    )
    assert chosen is not None, "every dtype has a forward"
    return launch.forward(q_BHTD, k_BGTD, v_BGTD, causal, chosen.config)


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
    q_BHTD, k_BGTD, v_BGTD = dense(q_BHTD), dense(k_BGTD), dense(v_BGTD)
    saved = Saved(q_BHTD, k_BGTD, v_BGTD, dense(out_BHTD), dense(logsumexp), dense(dout_BHTD), causal)
    asked = (q_BHTD, k_BGTD, causal)
    keys = _choose("keys", *asked, lambda config: launch.split_keys(saved, launch.row_sums(saved), config))
    queries = _choose("queries", *asked, lambda config: launch.split_queries(saved, saved.logsumexp, config))
    fused = _choose("fused", *asked, lambda config: launch.one_pass(saved, config))
    assert keys is not None, "every dtype has a backward"
    assert queries is not None, "every dtype has a backward"
    if fused is not None and fused.seconds < keys.seconds + queries.seconds:
        return launch.one_pass(saved, fused.config)
    row_sum = launch.row_sums(saved)
    dk_BGTD, dv_BGTD = launch.split_keys(saved, row_sum, keys.config)
    return launch.split_queries(saved, row_sum, queries.config), dk_BGTD, dv_BGTD


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
