"""4-bit weights times 8-bit activations in C++ for CPUs: a row of the matrix per vector lane, four products at a time.

Weights are repacked once into tiles of as many rows as a vector has lanes, so that the dot-product instructions of
AVX-512 VNNI, AVX-VNNI and NEON meet four columns of every row and no sum crosses a vector. An activation is rounded to
8 bits in blocks of 32 with a scale each; the offset of 8 in the codes becomes the value a block's sum begins with. A
tile is multiplied with twelve tokens while its codes are in registers.

Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (block_q4_0, block_q8_0);
docs/notes/int4_linear.md
"""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from archbench.hardware import native
from archbench.hardware.cpu import usable_cores
from archbench.kernels.int4_linear import Int4Case
from archbench.kernels.int4_linear._weights import Quantised, matrices
from archbench.track import Contender, Unavailable

SOURCES = Path(__file__).parent / "_cpu"
BLOCK = 32  # columns that share a scale in the tiles


class Linear:
    """The matrices of a case in the library's memory, freed with the object."""

    def __init__(self, library: ctypes.CDLL, case: Int4Case) -> None:
        self._library = _declared(library)
        self._wanted, self._shape = (case.tokens, case.inputs), (case.layers, case.tokens, case.outputs)
        threads = case.threads or usable_cores()
        self._layers = library.archbench_int4_new(case.layers, case.tokens, case.outputs, case.inputs, threads)
        if not self._layers:
            raise MemoryError(f"no memory for {case.slug}")
        weakref.finalize(self, library.archbench_int4_free, self._layers)
        for i, matrix in enumerate(matrices(case)):
            raw = blocks(matrix)
            library.archbench_int4_pack(self._layers, i, raw.ctypes.data, raw.strides[0])

    def __call__(self, x: Tensor) -> Tensor:
        """x (M, K) -> y (layers, M, N), float32."""
        if x.shape != self._wanted:
            raise ValueError(f"x is {tuple(x.shape)}: made for {self._wanted}")
        x = x.contiguous()
        y = x.new_empty(self._shape)
        self._library.archbench_int4_multiply(self._layers, x.data_ptr(), y.data_ptr())
        return y


def blocks(matrix: Quantised) -> npt.NDArray[np.uint8]:
    """A matrix as rows of GGUF's q4_0: a scale in half precision, then 16 bytes of two codes, 16 columns apart."""
    rows, columns = matrix.codes.shape
    codes = matrix.codes.reshape(rows, columns // BLOCK, 2, BLOCK // 2)
    scales = np.repeat(matrix.scales, matrix.group // BLOCK, axis=1).astype(np.float16)
    raw = np.empty((rows, columns // BLOCK, 2 + BLOCK // 2), np.uint8)
    raw[..., :2] = scales[..., None].view(np.uint8)
    raw[..., 2:] = codes[:, :, 0] | codes[:, :, 1] << 4
    return raw.reshape(rows, -1)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    number, address = ctypes.c_int, ctypes.c_void_p
    library.archbench_int4_new.argtypes, library.archbench_int4_new.restype = [number] * 5, address
    library.archbench_int4_free.argtypes, library.archbench_int4_free.restype = [address], None
    library.archbench_int4_pack.argtypes = [address, number, address, ctypes.c_int64]
    library.archbench_int4_multiply.argtypes, library.archbench_int4_multiply.restype = [address] * 3, None
    return library


def build(case: Int4Case) -> Linear:
    if case.kind != "w4a8":
        raise Unavailable("rounds activations to 8 bits: w4a8 only")
    if case.group % BLOCK:
        raise Unavailable(f"groups of multiples of {BLOCK} only, not {case.group}")
    return Linear(native.load(SOURCES), case)


CONTENDER: Contender[Int4Case] = Contender(build=build, device="cpu")
