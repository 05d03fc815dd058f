"""A decoder in C++ for CPUs: weights repacked a row per vector lane, one parallel region per token.

Matrices are copied once into the order they are read in: tiles of as many rows as a vector has lanes, so that 4-bit
weights meet 8-bit activations four terms at a time and no sum crosses a vector. q, k and v are one matrix, gate and up
another whose tiles alternate. Threads stay together from the embedding to the logits and meet at barriers that are
spun on; between two of them each prepares the activations for itself. Attention runs over keys and values in panels,
split by positions where a text is written. In a prompt a tile is multiplied with twelve tokens while its weights are in
registers. AVX-512 VNNI, AVX2, NEON with and without dot products, and plain C++ come from one source.

Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (block_q4_0, block_q8_0)
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt

from archbench.hardware import native
from archbench.hardware.cpu import usable_cores
from archbench.kernels import int4_linear
from archbench.models.edge_llm import EdgeCase, Logits, Tokens, prefix
from archbench.models.edge_llm._weights import Weights, open_weights
from archbench.track import Contender, Unavailable

SOURCES = Path(__file__).parent / "_cpu"
MATRICES = Path(int4_linear.__file__).parent / "_cpu"  # headers
FORMATS = {"f32": 0, "f16": 1, "q8_0": 2, "q4_0": 3}  # of weights and of caches, as model.hpp numbers them
PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
NUMBERS = (  # fields of model.hpp's Sizes
    *("vocabulary", "dim", "layers", "heads", "kv_heads", "head_dim", "hidden"),
    *("capacity", "threads", "weights", "cache"),
)
FACTORS = ("norm_eps", "rope_theta")
MAX_GROUP = 48  # query heads of a KV head
MAX_HEAD_DIM = 256
BLOCK = 32


class Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in NUMBERS] + [(name, ctypes.c_float) for name in FACTORS]


class NativeDecoder:
    """A model in the library's memory, freed with the object."""

    def __init__(self, library: ctypes.CDLL, weights: Weights, case: EdgeCase) -> None:
        config = weights.config
        cache = "f32" if case.weights == "f32" and case.kv == "f16" else case.kv
        shapes = (config.vocabulary, config.dim, config.layers, config.heads, config.kv_heads, config.head_dim)
        self._capacity, self._depth, self._position = case.depth + case.tokens, case.depth, 0
        numbers = (self._capacity, case.threads or usable_cores(), FORMATS[case.weights], FORMATS[cache])
        self._library = _declared(library)
        sizes = Sizes(*shapes, config.hidden, *numbers, config.norm_eps, config.rope_theta)
        self._decoder = library.archbench_edge_new(ctypes.byref(sizes))
        if not self._decoder:
            raise MemoryError(f"no memory for {case.model} in {case.weights}")
        weakref.finalize(self, library.archbench_edge_free, self._decoder)
        for layer in range(config.layers):
            for part, name in enumerate(PARTS):
                self._matrix(weights, f"blk.{layer}.{name}.weight", layer, part)
            for i, name in enumerate(("attn_norm", "ffn_norm")):
                self._norm(weights, f"blk.{layer}.{name}.weight", 2 * layer + i)
            release(weights.raw(f"blk.{layer}.attn_q.weight"))
        self._matrix(weights, weights.output, config.layers, 0)
        self._norm(weights, "output_norm.weight", 2 * config.layers)
        self._embedding = weights.raw("token_embd.weight")  # a row of it for a token, from the file
        library.archbench_edge_embedding(self._decoder, self._embedding.ctypes.data, self._embedding.strides[0])
        release(self._embedding)
        self._logits = np.zeros(config.vocabulary, np.float32)
        if case.depth:
            self(prefix(case))

    def rewind(self) -> None:
        self._position = self._depth

    def __call__(self, tokens: Tokens) -> Logits:
        """Raises ValueError behind the last position the case has room for, and for a token that is none."""
        if self._position + len(tokens) > self._capacity:
            raise ValueError(f"{len(tokens)} tokens behind {self._position}: the cache has room for {self._capacity}")
        tokens = np.ascontiguousarray(tokens, np.int32)
        addresses = (self._decoder, tokens.ctypes.data, len(tokens), self._position, self._logits.ctypes.data)
        if self._library.archbench_edge_step(*addresses):
            raise ValueError(f"tokens {tokens.min()} to {tokens.max()}: the vocabulary has {len(self._logits)}")
        self._position += len(tokens)
        return self._logits

    def _matrix(self, weights: Weights, name: str, layer: int, part: int) -> None:
        raw = weights.raw(name)
        self._library.archbench_edge_matrix(self._decoder, layer, part, raw.ctypes.data, raw.strides[0], len(raw))

    def _norm(self, weights: Weights, name: str, i: int) -> None:
        values = np.ascontiguousarray(weights.floats(name), np.float32)
        self._library.archbench_edge_norm(self._decoder, i, values.ctypes.data)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    number, address = ctypes.c_int, ctypes.c_void_p
    library.archbench_edge_new.argtypes, library.archbench_edge_new.restype = [address], address
    library.archbench_edge_free.argtypes, library.archbench_edge_free.restype = [address], None
    library.archbench_edge_matrix.argtypes = [address, number, number, address, ctypes.c_int64, number]
    library.archbench_edge_norm.argtypes = [address, number, address]
    library.archbench_edge_embedding.argtypes = [address, address, ctypes.c_int64]
    library.archbench_edge_step.argtypes = [address, address, number, number, address]
    return library


def release(array: npt.NDArray[np.uint8]) -> None:
    """Give the memory of the file an array lies in back to the system: what is read again comes from the file again."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def refusal(weights: Weights, case: EdgeCase) -> str | None:
    """Why the decoder cannot run a case, or None."""
    config = weights.config
    kinds = {weights.kind(name) for name in (*weights.matrices(), "token_embd.weight")}
    if kinds != {case.weights}:
        return f"matrices of one kind only, {', '.join(FORMATS)}; this file has {', '.join(sorted(kinds))}"
    if config.heads // config.kv_heads > MAX_GROUP or config.head_dim > MAX_HEAD_DIM:
        return f"at most {MAX_GROUP} query heads on a KV head, and heads of up to {MAX_HEAD_DIM}"
    if case.kv == "q8_0" and config.head_dim % BLOCK:
        return f"a cache in q8_0 needs heads of a multiple of {BLOCK}"
    return None


def build(case: EdgeCase) -> NativeDecoder:
    if case.weights not in FORMATS:
        raise Unavailable(f"weights in {', '.join(FORMATS)} only, not the mix {case.weights}")
    weights = open_weights(case)
    reason = refusal(weights, case)
    if reason is not None:
        raise Unavailable(reason)
    return NativeDecoder(native.load(SOURCES, MATRICES), weights, case)


CONTENDER: Contender[EdgeCase] = Contender(build=build, device="cpu")
