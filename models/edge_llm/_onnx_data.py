"""The weights of a GGUF file in the layout ONNX Runtime wants: one external data file for all graphs of a model.

Blocks are regrouped, never requantised. A q4_0 block (32 weights, one scale) keeps elements i and i + 16 in one byte;
``MatMulNBits`` and ``GatherBlockQuantized`` want 2i and 2i + 1 there. Both subtract 8, so the nibbles stay what they
are. A q8_0 block is signed; there the byte gains 128, which the operators subtract. Scales become fp32 (exactly).
Matrices that one multiplication can serve (queries, keys and values; gate and up) lie one behind the other, values and
scales apart: a graph takes one of them or all of them as one tensor.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (MatMulNBits)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from archbench.atomic import replacing
from archbench.models.edge_llm._artefacts import fingerprint
from archbench.models.edge_llm._weights import Weights
from archbench.track import Unavailable

BLOCK = 32  # weights that share a scale
BITS = {"q4_0": 4, "q8_0": 8}
FLOATS = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16}
BYTES = {TensorProto.UINT8: 1, TensorProto.FLOAT16: 2, TensorProto.FLOAT: 4}
ALIGNMENT = 64
LAYOUT = "archbench onnx 1"
ROWS = 4096  # are regrouped at a time


@dataclass(frozen=True)
class Piece:
    """A tensor of the data file."""

    shape: tuple[int, ...]
    type: int  # of TensorProto
    offset: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * BYTES[self.type]


def groups(layers: int, tied: bool) -> Iterator[tuple[str, ...]]:
    """The matrices by GGUF name, those that one multiplication can serve together."""
    yield ("token_embd.weight",)
    for layer in range(layers):
        at = f"blk.{layer}."
        yield (f"{at}attn_q.weight", f"{at}attn_k.weight", f"{at}attn_v.weight")
        yield (f"{at}attn_output.weight",)
        yield (f"{at}ffn_gate.weight", f"{at}ffn_up.weight")
        yield (f"{at}ffn_down.weight",)
    if not tied:
        yield ("output.weight",)


def layout(weights: Weights) -> tuple[dict[str, Piece], int]:
    """Name -> tensor of the file, and where the tensors end. ``NAME:scales`` are a quantised matrix's scales.

    Raises Unavailable where a kind has no operator.
    """
    pieces: dict[str, Piece] = {}
    end = 0

    def place(name: str, shape: tuple[int, ...], kind: int) -> None:
        nonlocal end
        pieces[name] = Piece(shape, kind, end)
        end += pieces[name].bytes

    for names in groups(weights.config.layers, weights.config.tied):
        kinds = {weights.kind(name) for name in names}
        if not kinds <= BITS.keys() | FLOATS.keys():
            raise Unavailable(f"ONNX Runtime has no matrix product for {', '.join(sorted(kinds))} weights")
        if len(kinds) > 1:
            raise Unavailable(f"{' and '.join(names)} are of different kinds: {', '.join(sorted(kinds))}")
        bits = BITS.get(weights.kind(names[0]))
        for part in ("", ":scales") if bits else ("",):
            end = -(-end // ALIGNMENT) * ALIGNMENT
            for name in names:
                rows, columns = weights.shape(name)
                if not bits:
                    place(name, (rows, columns), FLOATS[weights.kind(name)])
                elif part:
                    place(name + part, (rows, columns // BLOCK), TensorProto.FLOAT)
                else:
                    place(name, (rows, columns // BLOCK, BLOCK * bits // 8), TensorProto.UINT8)
    return pieces, end


def regroup(blocks: npt.NDArray[np.uint8], kind: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """GGUF rows (N, bytes) -> values (N, K / 32, 16 or 32) and scales (N, K / 32)."""
    size = 2 + BLOCK * BITS[kind] // 8
    blocks = blocks.reshape(len(blocks), -1, size)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0].astype(np.float32)
    values = blocks[..., 2:]
    if kind == "q8_0":
        return values ^ np.uint8(128), scales  # the signed byte plus 128
    elements = np.concatenate((values & 15, values >> 4), axis=-1)
    return elements[..., 0::2] | elements[..., 1::2] << 4, scales


def data_file(weights: Weights, pieces: dict[str, Piece], end: int) -> Path:
    """The data file beside a GGUF file, written if it is missing or another GGUF file's."""
    gguf = weights.path
    target = gguf.with_suffix(".onnx_data")
    mark = f"{LAYOUT} {fingerprint(gguf)}".encode()  # ends the file: tells it from one of other weights
    if not (target.exists() and target.stat().st_size == end + len(mark) and _tail(target, len(mark)) == mark):
        with replacing(target) as staged, staged.open("wb") as file:
            for name, piece in pieces.items():
                if name.endswith(":scales"):
                    continue
                _write(file, weights, name, piece, pieces.get(f"{name}:scales"))
            file.seek(end)
            file.write(mark)
    return target


def _write(file: BufferedWriter, weights: Weights, name: str, values: Piece, scales: Piece | None) -> None:
    raw, kind = weights.raw(name), weights.kind(name)
    done = [values.offset, scales.offset if scales else 0]
    for start in range(0, len(raw), ROWS):
        parts: Iterable[npt.NDArray[np.generic]] = (raw[start : start + ROWS],)
        if scales is not None:
            parts = regroup(raw[start : start + ROWS], kind)
        for index, part in enumerate(parts):
            file.seek(done[index])
            done[index] += file.write(np.ascontiguousarray(part).tobytes())


def _tail(file: Path, count: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(-count, 2)
        return opened.read()
