"""Experts in C++ for CPUs, float32, nothing kept for a backward: products, gate and answers of an expert in one pass.

A thread takes a few panels of 48 tokens of an expert (with AVX-512 VNNI: as many as its registers hold sums for),
brings them into the order its vectors want, and goes through the expert's hidden units in blocks of 128: a block is
computed, gated in registers and multiplied into the answers while it is in the second-level cache. So hidden units do
not travel to memory, weights are read where they lie and asked for a tile ahead, and no thread waits for another before
the end. A row's sums are added up in the same order whichever thread takes it: answers do not depend on the number of
threads.

Letters: N tokens, D width, H hidden units, F = 2 H for gated layers, else H, E experts, A assignments.

Source: Goto & van de Geijn 2008, doi:10.1145/1356052.1356053 (panels and tiles); docs/notes/moe_ffn.md (measurements)
"""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from archbench.hardware import native
from archbench.kernels.moe_ffn._products import Activation
from archbench.track import Unavailable

SOURCES = Path(__file__).parent / "_cpu"
HEADERS = Path(__file__).parents[1] / "int4_linear" / "_cpu"  # the target's vectors


@cache
def library() -> ctypes.CDLL | None:
    """The compiled experts; None where there is no compiler, or none that works: that is warned of, once."""
    try:
        return declared(native.load(SOURCES, HEADERS))
    except Unavailable:
        return None
    except (OSError, RuntimeError) as reason:
        warnings.warn(f"experts are multiplied by oneDNN: their C++ is not there ({reason})", stacklevel=2)
        return None


def declared(found: ctypes.CDLL) -> ctypes.CDLL:
    """A library of the experts that knows what its functions take."""
    found.archbench_moe_scratch.argtypes = [ctypes.c_int64]
    found.archbench_moe_scratch.restype = ctypes.c_int64
    sizes, pointers = [ctypes.c_int64] * 3, [ctypes.c_void_p] * 6
    found.archbench_moe_forward.argtypes = [ctypes.c_int, *sizes, *pointers, ctypes.c_int, ctypes.c_void_p]
    found.archbench_moe_forward.restype = None
    return found


def fits(*tensors: Tensor) -> bool:
    """Whether all of this is what the compiled experts take, and they are there."""
    return all(one.device.type == "cpu" and one.dtype is torch.float32 for one in tensors) and library() is not None


def forward(
    activation: Activation, x_ND: Tensor, token_A: Tensor, counts: list[int], w_in_EFD: Tensor, w_out_EHD: Tensor
) -> Tensor:
    """(A, D): what the experts say of the tokens of a list that is sorted by expert, where ``fits`` says yes.

    An operator of PyTorch, so that tracing, fake tensors and views that negate meet what they expect. Raises ValueError
    where the shapes do not fit together, IndexError where a token is not among x.
    """
    said_AD: Tensor = _operator(activation, x_ND, token_A, counts, w_in_EFD, w_out_EHD)
    return said_AD


def _forward(
    activation: str, x_ND: Tensor, token_A: Tensor, counts: list[int], w_in_EFD: Tensor, w_out_EHD: Tensor
) -> Tensor:
    compiled = library()
    assert compiled is not None
    experts, hidden, width = w_out_EHD.shape
    units = (2 if activation == "swiglu" else 1) * hidden
    if x_ND.shape[1:] != (width,) or w_in_EFD.shape != (experts, units, width) or not width:
        shapes = ", ".join(str(tuple(one.shape)) for one in (x_ND, w_in_EFD, w_out_EHD))
        raise ValueError(f"x, w_in and w_out do not fit together: {shapes}")
    if len(counts) != experts or min(counts, default=0) < 0 or sum(counts) != len(token_A):
        raise ValueError(f"{len(token_A)} rows of {experts} experts, counts {counts}")
    if len(token_A):
        first, last = token_A.aminmax()
        if first < 0 or last >= len(x_ND):
            raise IndexError(f"tokens {int(first)} to {int(last)} of {len(x_ND)}")
    threads = torch.get_num_threads()
    x_ND, token_A, w_in_EFD, w_out_EHD = (
        x_ND.contiguous(), token_A.to(torch.int64).contiguous(), w_in_EFD.contiguous(), w_out_EHD.contiguous()
    )  # fmt: skip
    scratch = x_ND.new_empty(threads, compiled.archbench_moe_scratch(width))
    said_AD = x_ND.new_empty(len(token_A), width)
    gated, rows = int(activation == "swiglu"), (ctypes.c_int64 * experts)(*counts)
    x, token, w_in, w_out = (one.data_ptr() for one in (x_ND, token_A, w_in_EFD, w_out_EHD))
    memory, said = scratch.data_ptr(), said_AD.data_ptr()
    compiled.archbench_moe_forward(gated, experts, width, hidden, x, token, rows, w_in, w_out, memory, threads, said)
    return said_AD


_operator = torch.library.custom_op(
    "archbench::experts",
    _forward,
    mutates_args=(),
    device_types="cpu",
    schema="(str activation, Tensor x, Tensor token, int[] counts, Tensor w_in, Tensor w_out) -> Tensor",
)
_operator.register_fake(lambda activation, x, token, counts, w_in, w_out: x.new_empty(len(token), w_out.shape[-1]))
