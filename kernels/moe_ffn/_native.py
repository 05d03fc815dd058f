"""Experts in C++ for CPUs, float32, nothing kept for a backward: products, gate and answers of an expert in one pass.

A thread takes a few panels of 48 tokens of an expert (with AVX-512: as many as its registers hold sums for), brings
them into the order its vectors want, and goes through the expert's hidden units in blocks of 128: a block is computed,
gated in registers and multiplied into the answers while it is in the nearest cache. So hidden units never reach memory,
weights are read where they lie and asked for a tile ahead, and no thread waits for another before the end. A row's sums
are added up in the same order whichever thread takes it: answers do not depend on the number of threads.

Letters: N tokens, D width, H hidden units, F = 2 H for gated layers, else H, E experts, A assignments.

Source: Goto & van de Geijn 2008, doi:10.1145/1356052.1356053 (panels and tiles); docs/notes/moe_ffn.md (measurements)
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from archbench.hardware import native
from archbench.kernels.moe_ffn._products import Activation
from archbench.track import Unavailable

SOURCES = Path(__file__).parent / "_cpu"
VECTORS = Path(__file__).parents[1] / "int4_linear" / "_cpu"  # the headers with the target's vectors


@cache
def library() -> ctypes.CDLL | None:
    """The compiled experts; None where there is no compiler. Raises RuntimeError where the source does not compile."""
    try:
        return declared(native.load(SOURCES, VECTORS))
    except Unavailable:
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
    """Whether all of this is what the compiled experts take, and there is a compiler."""
    return all(one.device.type == "cpu" and one.dtype is torch.float32 for one in tensors) and library() is not None


def forward(
    activation: Activation, x_ND: Tensor, token_A: Tensor, counts: list[int], w_in_EFD: Tensor, w_out_EHD: Tensor
) -> Tensor:
    """(A, D): what the experts say of the tokens of a list that is sorted by expert, where ``fits`` says yes."""
    compiled = library()
    assert compiled is not None
    threads, (experts, hidden, width) = torch.get_num_threads(), w_out_EHD.shape
    given = [tensor.contiguous() for tensor in (x_ND, token_A, w_in_EFD, w_out_EHD)]
    x, token, w_in, w_out = (tensor.data_ptr() for tensor in given)
    scratch = x_ND.new_empty(threads, compiled.archbench_moe_scratch(width))
    said_AD = x_ND.new_empty(len(token_A), width)
    compiled.archbench_moe_forward(
        int(activation == "swiglu"),
        experts,
        width,
        hidden,
        x,
        token,
        (ctypes.c_int64 * experts)(*counts),
        w_in,
        w_out,
        scratch.data_ptr(),
        threads,
        said_AD.data_ptr(),
    )
    return said_AD
