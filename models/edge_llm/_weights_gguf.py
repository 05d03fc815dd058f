"""Reads GGUF files: metadata, and tensors as memory-mapped blocks or as float32.

The ``gguf`` package reads them too, by an array object for every string of a tokeniser: three seconds for a model of
100 MB, which every process of a run would pay. This reader walks over the header once (0.1 s) and maps the rest.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from archbench.models.edge_llm._config import LlamaConfig
from archbench.models.edge_llm._weights_blocks import KINDS, floats

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

MAGIC, VERSION = b"GGUF", 3
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # by type number
STRING, ARRAY = 8, 9


class BadGguf(ValueError):
    """The file is no GGUF file of a Llama model that this track can use; the message says why."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies. A vector has one row."""

    kind: str
    shape: tuple[int, ...]  # numpy's order: (rows, columns) or (columns,)
    offset: int  # in the file

    @property
    def row_bytes(self) -> int:
        block, size = KINDS[self.kind].block, KINDS[self.kind].bytes
        return self.shape[-1] // block * size

    @property
    def rows(self) -> int:
        return self.shape[0] if len(self.shape) == 2 else 1


class Gguf:
    """An opened file. Raises BadGguf and OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes: Bytes = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        try:
            self.metadata, self.tensors = _Header(self._bytes.data).read()
        except (struct.error, UnicodeDecodeError, KeyError, IndexError) as error:
            raise BadGguf(f"{path} is no GGUF file, or a part of one ({error})") from error
        for name, tensor in self.tensors.items():
            if tensor.offset + tensor.rows * tensor.row_bytes > len(self._bytes):
                raise BadGguf(f"{path} ends before {name}: a part of the file is missing")

    @property
    def config(self) -> LlamaConfig:
        """The model's shapes. Raises BadGguf where it is no Llama."""
        found = self.metadata
        if found.get("general.architecture") != "llama":
            raise BadGguf(f"{self.path} holds a model of architecture {found.get('general.architecture')!r}, not llama")
        try:
            dim, heads = found["llama.embedding_length"], found["llama.attention.head_count"]
            return LlamaConfig(
                vocabulary=self.tensors["token_embd.weight"].shape[0],
                dim=dim,
                layers=found["llama.block_count"],
                heads=heads,
                kv_heads=found["llama.attention.head_count_kv"],
                head_dim=found.get("llama.attention.key_length", dim // heads),
                hidden=found["llama.feed_forward_length"],
                context=found["llama.context_length"],
                rope_theta=found["llama.rope.freq_base"],
                norm_eps=float(f"{found['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # float32 in the file
                tied="output.weight" not in self.tensors,
            )
        except KeyError as key:
            raise BadGguf(f"{self.path} does not say {key}") from key

    def raw(self, name: str) -> Bytes:
        """The blocks of a tensor as they are, memory-mapped: uint8 (rows, bytes per row)."""
        tensor = self.tensors[name]
        end = tensor.offset + tensor.rows * tensor.row_bytes
        return self._bytes[tensor.offset : end].reshape(tensor.rows, tensor.row_bytes)

    def floats(self, name: str, rows: npt.NDArray[np.integer] | slice = slice(None)) -> Floats:
        """A tensor as float32 (rows, columns), or some of its rows; a vector as (columns,)."""
        tensor = self.tensors[name]
        found = floats(tensor.kind, self.raw(name)[rows])
        return found if len(tensor.shape) == 2 else found[0]


class _Header:
    """A cursor over the file's beginning."""

    def __init__(self, content: memoryview) -> None:
        self._content, self._at = content, 0

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        magic, version, tensors, entries = self._unpack("4sIQQ")
        if magic != MAGIC or version != VERSION:
            raise BadGguf(f"the file begins with {magic!r} version {version}, expected {MAGIC!r} version {VERSION}")
        metadata = {self._string(): self._value(*self._unpack("I")) for _ in range(entries)}
        found = [self._tensor() for _ in range(tensors)]
        align = metadata.get("general.alignment", 32)
        start = -(-self._at // align) * align
        return metadata, {name: Tensor(kind, shape, start + offset) for name, kind, shape, offset in found}

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from("<" + layout, self._content, self._at)
        self._at += struct.calcsize("<" + layout)
        return found

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        if self._at + length > len(self._content):
            raise IndexError("a text goes beyond the end")
        text = bytes(self._content[self._at : self._at + length]).decode()
        self._at += length
        return text

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            of, count = self._unpack("IQ")
            if of in SCALARS:
                return list(self._unpack(f"{count}{SCALARS[of]}"))
            return [self._value(of) for _ in range(count)]
        return self._unpack(SCALARS[kind])[0]

    def _tensor(self) -> tuple[str, str, tuple[int, ...], int]:
        name = self._string()
        (axes,) = self._unpack("I")
        shape = self._unpack(f"{axes}Q")[::-1]
        number, offset = self._unpack("IQ")
        kinds = {kind.number: kind_name for kind_name, kind in KINDS.items()}
        if number not in kinds:
            raise BadGguf(f"{name} is quantised in a way this track does not know (ggml type {number})")
        return name, kinds[number], shape, offset
