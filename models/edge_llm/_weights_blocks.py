"""The ways weights are stored: block sizes, and blocks to float32 and back.

What this track stores itself is read and written here (float32, float16, Q8_0, Q4_0), in passes over slices that fit
into a cache; llama.cpp's mixed kinds are read by the ``gguf`` package, which knows them all. Q4_0 is 32 weights: a
float16 scale, then 16 bytes whose low halves are the first 16 weights and whose high halves are the last, from -8 to 7.
Rounding is ggml's, bit by bit, so that a file made here is the file llama-quantize makes.

Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c (reference quantisers)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

BLOCK = 32  # weights that share a scale in Q8_0 and Q4_0
LOW_HALVES = np.uint64(0x0F0F0F0F0F0F0F0F)
SLICE = 1 << 16  # weights that are worked on at a time: 256 KB of float32


class Kind(NamedTuple):
    """How one kind is laid out."""

    number: int  # ggml's
    block: int  # weights
    bytes: int  # of a block


KINDS = {
    "f32": Kind(0, 1, 4),
    "f16": Kind(1, 1, 2),
    "q4_0": Kind(2, 32, 18),
    "q4_1": Kind(3, 32, 20),
    "q5_0": Kind(6, 32, 22),
    "q5_1": Kind(7, 32, 24),
    "q8_0": Kind(8, 32, 34),
    "q4_k": Kind(12, 256, 144),
    "q5_k": Kind(13, 256, 176),
    "q6_k": Kind(14, 256, 210),
}


def floats(kind: str, raw: Bytes) -> Floats:
    """Blocks (rows, bytes per row) as float32 (rows, columns)."""
    if kind in ("f32", "f16"):
        return np.ascontiguousarray(raw).view("<f4" if kind == "f32" else "<f2").astype(np.float32)
    if kind not in ("q8_0", "q4_0"):
        from gguf.quants import dequantize

        return np.asarray(dequantize(np.ascontiguousarray(raw), _ggml(kind)), np.float32)
    size = KINDS[kind].bytes
    blocks = np.ascontiguousarray(raw).reshape(-1, size)
    found = np.empty((len(blocks), BLOCK), np.float32)
    for start in range(0, len(blocks), SLICE // BLOCK):
        part, out = blocks[start : start + SLICE // BLOCK], found[start : start + SLICE // BLOCK]
        if kind == "q8_0":
            out[:] = part[:, 2:].view(np.int8)
        else:
            out[:] = _halves(part[:, 2:])
            out -= 8
        out *= np.ascontiguousarray(part[:, :2]).view("<f2").astype(np.float32)
    return found.reshape(raw.shape[0], -1)


def _halves(packed: Bytes) -> Bytes:
    """The low halves of 16 bytes, then the high ones: (blocks, 32). By words of 8 bytes: a loop over 16 is short."""
    words = np.ascontiguousarray(packed).view(np.uint64)
    found = np.empty((len(words), 4), np.uint64)
    for column in range(2):
        found[:, column] = words[:, column] & LOW_HALVES
        found[:, 2 + column] = words[:, column] >> np.uint64(4) & LOW_HALVES
    return found.view(np.uint8)


def quantised(kind: str, weights: Floats) -> Bytes:
    """float32 (rows, columns) as blocks (rows, bytes per row). Columns are a multiple of the kind's block."""
    if kind in ("f32", "f16"):
        return np.ascontiguousarray(weights, "<f4" if kind == "f32" else "<f2").view(np.uint8)
    size = KINDS[kind].bytes
    blocks = np.ascontiguousarray(weights, np.float32).reshape(-1, BLOCK)
    found = np.empty((len(blocks), size), np.uint8)
    pack = _pack_q8_0 if kind == "q8_0" else _pack_q4_0
    for start in range(0, len(blocks), SLICE // BLOCK):
        pack(blocks[start : start + SLICE // BLOCK], found[start : start + SLICE // BLOCK])
    return found.reshape(weights.shape[0], -1)


def _pack_q8_0(blocks: Floats, out: Bytes) -> None:
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    steps = blocks * _reciprocal(scale)
    np.copysign(np.floor(np.abs(steps) + np.float32(0.5)), steps, out=steps)  # halves away from zero, as roundf
    out[:, :2] = scale.astype("<f2").view(np.uint8)
    out[:, 2:] = steps.astype(np.int8).view(np.uint8)


def _pack_q4_0(blocks: Floats, out: Bytes) -> None:
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scale = largest / np.float32(-8)
    steps = np.minimum((blocks * _reciprocal(scale) + np.float32(8.5)).astype(np.uint8), 15)
    out[:, :2] = scale.astype("<f2").view(np.uint8)
    out[:, 2:] = steps[:, :16] | steps[:, 16:] << 4


def _reciprocal(scale: Floats) -> Floats:
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)


def _ggml(kind: str) -> int:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(KINDS[kind].number)
