"""The weights of a case, as every contender gets them.

One file per model and kind of weights: the numbers in it are the model, for every runtime. A contender takes the file
(``Weights.path``), the blocks of a tensor as they are (``raw``), or its values as float32 (``floats``).

Tensors have GGUF's names: ``token_embd.weight``, ``output_norm.weight``, ``output.weight`` (not where it is the
embedding), and for each layer ``blk.0.attn_norm``, ``attn_q``, ``attn_k``, ``attn_v``, ``attn_output``, ``ffn_norm``,
``ffn_gate``, ``ffn_up``, ``ffn_down``, each with ``.weight``. A matrix is (outputs, inputs). Rotary pairs are
neighbours.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from archbench.models.edge_llm import _artefacts as artefacts
from archbench.models.edge_llm._weights_blocks import Bytes, Floats
from archbench.models.edge_llm._weights_gguf import BadGguf, Gguf
from archbench.track import Unavailable

if TYPE_CHECKING:
    from archbench.models.edge_llm import EdgeCase


class Weights:
    """A model's weights in a GGUF file that is whole. Raises Unavailable where it is not."""

    def __init__(self, path: Path) -> None:
        try:
            artefacts.verify(path)
            self._file = Gguf(path)
            self.config = self._file.config
        except (BadGguf, OSError) as error:
            raise Unavailable(str(error)) from error
        self.path = path
        self.metadata = self._file.metadata

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._file.tensors)

    def kind(self, name: str) -> str:
        """How a tensor is stored: "f32", "f16", "q8_0", "q4_0", or one of llama.cpp's ("q4_k", "q6_k", "q5_0")."""
        return self._file.tensors[name].kind

    def shape(self, name: str) -> tuple[int, ...]:
        """(outputs, inputs) of a matrix, (columns,) of a vector."""
        return self._file.tensors[name].shape

    def raw(self, name: str) -> Bytes:
        """The blocks of a tensor as they are, memory-mapped: uint8 (rows, bytes per row); a vector has one row."""
        return self._file.raw(name)

    def floats(self, name: str, rows: npt.NDArray[np.integer] | slice = slice(None)) -> Floats:
        """A tensor as float32 (rows, columns), or some of its rows; a vector as (columns,)."""
        return self._file.floats(name, rows)

    @property
    def output(self) -> str:
        """The name of the output matrix."""
        return "token_embd.weight" if self.config.tied else "output.weight"

    def matrices(self) -> Iterator[str]:
        """The names of the tensors a token is multiplied with, in order."""
        for layer in range(self.config.layers):
            for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
                yield f"blk.{layer}.{part}.weight"
        yield self.output


@lru_cache(maxsize=4)
def _opened(path: Path, stamp: tuple[int, int]) -> Weights:
    return Weights(path)


def open_weights(what: EdgeCase | Path) -> Weights:
    """The weights of a case, or of a file. Raises Unavailable where they are missing or damaged, with what to do."""
    if not isinstance(what, Path):
        what = artefacts.ready(what)
    try:
        status = what.stat()
    except OSError as error:
        raise Unavailable(str(error)) from error
    return _opened(what, (status.st_size, status.st_mtime_ns))
