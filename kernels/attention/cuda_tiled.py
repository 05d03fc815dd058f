"""FlashAttention-2 by hand in CUDA C++: tensor cores fed by ldmatrix and cp.async, forward and backward, GQA.

The sources in ``_cuda`` are compiled for the case's head size, mask and dtype and for the GPU at hand. The forward
keeps a block of queries on the chip; Hopper has its own, with wgmma and the copy engine. The backward forms the weights
again from the logsumexp, in one kernel over blocks of keys for dK and dV and one over blocks of queries for dQ, so that
results do not depend on the order of execution. Not measured on a GPU yet; tested on a CPU that plays one.

Source: Dao 2023, arXiv:2307.08691; Shah et al. 2024, arXiv:2407.08608
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archbench.kernels import cuda
from archbench.kernels.attention import AttentionCase
from archbench.track import Call, Contender, Unavailable

SOURCES = Path(__file__).parent / "_cuda"
HEAD_DIMS = (64, 128)
DTYPES = ("fp16", "bf16")
OLDEST = (8, 0)  # compute capability: cp.async and mma in bf16
HOPPER = (9, 0)  # wgmma


class Problem(ctypes.Structure):
    """The kernels' argument, as ``_cuda/tiles.cuh`` declares it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "logsumexp", "dout", "row_sum", "dq", "dk", "dv")),
        ("shared", ctypes.c_int),
        ("length", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("scale_log2", ctypes.c_float),
    )


class MappedProblem(ctypes.Structure):
    """The argument of Hopper's forward, as ``_cuda/wgmma_tiles.cuh`` declares it."""

    _fields_ = (
        *((name, ctypes.c_uint64 * 16) for name in ("q", "k", "v")),
        ("plain", Problem),
        ("padding", ctypes.c_char * (-ctypes.sizeof(Problem) % 128)),
    )


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched."""

    kernel: str
    rows: int  # of queries or keys in a block
    threads: int
    shared_bytes: int
    unit: str = "backward.cu"  # the file that has it
    mapped_rows: int = 0  # of a box of K or V where the copy engine fetches; 0: it does not


def launches(head_dim: int, hopper: bool) -> dict[str, Launch]:
    """The kernels by what they do. But for Hopper's they fit into the 99 KiB of shared memory that sm_86 has."""
    row = head_dim * 2
    if hopper:
        groups = 3 if head_dim == 64 else 2
        shared_bytes = (groups * 64 + 4 * 128) * row + 9 * 8
        forward = Launch(
            "forward_wgmma", groups * 64, (groups + 1) * 128, shared_bytes, "forward_wgmma.cu", mapped_rows=128
        )
    else:
        keys = 64 if head_dim == 64 else 32
        forward = Launch("forward", 128, 128, (128 + 2 * keys) * row, "forward.cu")
    streamed, threads = (64, 128) if head_dim == 64 else (32, 256)
    backward_bytes = (2 * 128 + 4 * streamed) * row + 4 * streamed * 4
    return {
        "forward": forward,
        "row_sums": Launch("row_sums", 32, 256, 0),
        "backward_keys": Launch("backward_keys", 128, threads, backward_bytes),
        "backward_queries": Launch("backward_queries", 128, threads, backward_bytes),
    }


def argument(
    launch: Launch, problem: Problem, heads: int, head_dim: int, tensor_map: Callable[..., ctypes.Array]
) -> Problem | MappedProblem:
    """What the kernel takes, for that many query heads in all."""
    if not launch.mapped_rows:
        return problem
    sizes, kv_sizes = (heads, problem.length, head_dim), (heads // problem.shared, problem.length, head_dim)
    return MappedProblem(
        q=tensor_map(problem.q, sizes, launch.rows),
        k=tensor_map(problem.k, kv_sizes, launch.mapped_rows),
        v=tensor_map(problem.v, kv_sizes, launch.mapped_rows),
        plain=problem,
    )


def defines(head_dim: int, causal: bool, dtype: torch.dtype) -> tuple[str, ...]:
    """What the sources are compiled with."""
    bf16 = dtype is torch.bfloat16
    return (f"ARCHBENCH_HEAD_DIM={head_dim}", f"ARCHBENCH_CAUSAL={causal:d}", f"ARCHBENCH_BF16={bf16:d}")


Launcher = Callable[[str, int, Problem], None]  # (what to do, blocks beside those of rows, problem)


@cache
def launcher(device: torch.device, head_dim: int, causal: bool, dtype: torch.dtype) -> Launcher:
    """Compile and load the kernels of one kind of problem. Raises as ``cuda.compiled``."""
    capability = torch.cuda.get_device_capability(device)
    described = launches(head_dim, hopper=capability == HOPPER)
    target, options = cuda.architecture(capability), defines(head_dim, causal, dtype)
    modules = {
        unit: cuda.Module(cuda.compiled(SOURCES, unit, target, options).read_bytes(), device.index)
        for unit in {each.unit for each in described.values()}
    }
    functions = {
        name: modules[each.unit].function(each.kernel, each.threads, each.shared_bytes)
        for name, each in described.items()
    }

    def launch(name: str, heads: int, problem: Problem) -> None:
        how = described[name]
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream().cuda_stream
            grid = (-(-problem.length // how.rows), heads)
            functions[name].launch(grid, argument(how, problem, heads, head_dim, cuda.tensor_map), stream)

    return launch


def _problem(q_BHTD: Tensor, k_BGTD: Tensor, **tensors: Tensor) -> Problem:
    scale = 1 / math.sqrt(q_BHTD.shape[3])
    return Problem(
        q=q_BHTD.data_ptr(),
        k=k_BGTD.data_ptr(),
        shared=q_BHTD.shape[1] // k_BGTD.shape[1],
        length=q_BHTD.shape[2],
        scale=scale,
        scale_log2=scale * math.log2(math.e),
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
    )


@torch.library.custom_op("archbench::cuda_tiled_forward", mutates_args=())
def flash_forward(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """out_BHTD and the rows' logsumexp in units of log 2, float32 [B, H, T]."""
    q_BHTD, k_BGTD, v_BGTD = q_BHTD.contiguous(), k_BGTD.contiguous(), v_BGTD.contiguous()
    batch, heads, _, head_dim = q_BHTD.shape
    out_BHTD = torch.empty_like(q_BHTD)
    logsumexp = q_BHTD.new_empty(q_BHTD.shape[:3], dtype=torch.float32)
    problem = _problem(q_BHTD, k_BGTD, v=v_BGTD, out=out_BHTD, logsumexp=logsumexp)
    launcher(q_BHTD.device, head_dim, causal, q_BHTD.dtype)("forward", batch * heads, problem)
    return out_BHTD, logsumexp


@torch.library.custom_op("archbench::cuda_tiled_backward", mutates_args=())
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
    batch, heads, _, head_dim = q_BHTD.shape
    dq_BHTD, dk_BGTD, dv_BGTD = (torch.empty_like(tensor) for tensor in (q_BHTD, k_BGTD, v_BGTD))
    row_sum = torch.empty_like(logsumexp)
    given = {"v": v_BGTD, "out": out_BHTD, "logsumexp": logsumexp, "dout": dout_BHTD, "row_sum": row_sum}
    problem = _problem(q_BHTD, k_BGTD, **given, dq=dq_BHTD, dk=dk_BGTD, dv=dv_BGTD)
    launch = launcher(q_BHTD.device, head_dim, causal, q_BHTD.dtype)
    launch("row_sums", batch * heads, problem)
    launch("backward_keys", batch * k_BGTD.shape[1], problem)
    launch("backward_queries", batch * heads, problem)
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
    if case.dtype not in DTYPES:
        raise Unavailable(f"its kernels are for {' and '.join(DTYPES)}, not {case.dtype}")
    cuda.compiler()
    device = torch.device("cuda", torch.cuda.current_device())
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        raise Unavailable(f"needs compute capability 8.0, this GPU has {'.'.join(map(str, capability))}")
    launcher(device, case.head_dim, case.causal, {"fp16": torch.float16, "bf16": torch.bfloat16}[case.dtype])

    def attention(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        out_BHTD, _ = flash_forward(q_BHTD, k_BGTD, v_BGTD, case.causal)
        return out_BHTD

    return attention


CONTENDER: Contender[AttentionCase] = Contender(build=_build, device="cuda")
