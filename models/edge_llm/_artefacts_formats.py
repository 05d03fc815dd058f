"""Weights in the formats of others: GGUF, checkpoints of llama2.c, Hugging Face's safetensors.

Hugging Face's Llama turns the first half of a head against the second; GGUF's and llama2.c's turn neighbours, so the
rows of its query and key matrices are sorted anew. Where a file has no output matrix of its own, that is the embedding.
safetensors are read here, because numpy has no bfloat16 and the library's reader for numpy refuses it.

Source: https://github.com/karpathy/llama2.c/blob/master/export.py (``legacy_export``);
https://huggingface.co/docs/safetensors (format)
"""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from archbench.models.edge_llm._artefacts_sources import EMBEDDING, OUTPUT, Source
from archbench.models.edge_llm._config import LlamaConfig
from archbench.models.edge_llm._weights_blocks import Floats
from archbench.models.edge_llm._weights_gguf import BadGguf, Gguf

PARTS = {  # GGUF's names of a layer's tensors, and Hugging Face's
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # in safetensors; numpy has no bfloat16


class OtherGguf(Source):
    """A model that is a GGUF file already, of another kind of weights."""

    def __init__(self, model: str, where: Path) -> None:
        super().__init__(model)
        self._file = Gguf(where)
        self._tied = _expect(where, self._file.config, self.config)

    def tensor(self, name: str) -> Floats:
        return self._file.floats(EMBEDDING if self._tied and name == OUTPUT else name)

    def add_tokenizer(self, writer: Any) -> None:
        for key, value in self._file.metadata.items():
            if key.startswith("tokenizer."):
                add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
                add[type(value)](key, value)


class Llama2C(Source):
    """A checkpoint of llama2.c, first version: seven sizes, then every kind of tensor for all layers in turn."""

    HEADER = struct.Struct("<7i")
    ORDER = (
        "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_down", "ffn_up"
    )  # fmt: skip

    def __init__(self, model: str, where: Path) -> None:
        super().__init__(model)
        content = where.read_bytes()
        if len(content) < self.HEADER.size:
            raise BadGguf(f"{where} has {len(content)} bytes: it is no checkpoint of llama2.c")
        dim, hidden, layers, heads, kv_heads, vocabulary, context = self.HEADER.unpack_from(content)
        sizes = (abs(vocabulary), dim, layers, heads, kv_heads, dim // max(heads, 1), hidden, context)
        tied = vocabulary > 0  # a negative one says that the output matrix follows at the end
        self._tied = _expect(where, LlamaConfig(*sizes, tied=tied), self.config)
        self._values = np.frombuffer(content, "<f4", offset=self.HEADER.size)
        self._starts, end = self._layout()
        if len(self._values) != end:
            raise BadGguf(f"{where} has {len(self._values)} numbers, expected {end}")

    def _layout(self) -> tuple[dict[str, int], int]:
        """Where each tensor starts, and the number of all values."""
        layers, at, starts = range(self.config.layers), 0, {}
        names = ["token_embd.weight", *(f"blk.{n}.{part}.weight" for part in self.ORDER for n in layers)]
        for name in (*names, "output_norm.weight"):
            starts[name] = at
            at += int(np.prod(self.shapes[name]))
        at += self.config.context * self.config.head_dim  # cosines and sines of the positions
        if not self._tied:
            starts[OUTPUT] = at
            at += int(np.prod(self.shapes[OUTPUT]))
        return starts, at

    def tensor(self, name: str) -> Floats:
        shape, name = self.shapes[name], EMBEDDING if self._tied and name == OUTPUT else name
        return self._values[self._starts[name] :][: int(np.prod(shape))].reshape(shape).astype(np.float32)


class HuggingFace(Source):
    """A folder with config.json and model.safetensors."""

    def __init__(self, model: str, where: Path) -> None:
        super().__init__(model)
        try:
            found = self._config(json.loads((where / "config.json").read_bytes()))
        except (KeyError, ValueError) as error:
            raise BadGguf(f"{where / 'config.json'} is no description of a Llama model ({error})") from error
        self._tied = _expect(where, found, self.config)
        file = where / "model.safetensors"
        try:
            self._bytes = np.memmap(file, np.uint8, "r")
            (length,) = struct.unpack("<Q", bytes(self._bytes[:8]))
            self._entries, self._start = json.loads(bytes(self._bytes[8 : 8 + length])), 8 + length
        except (ValueError, struct.error) as error:
            raise BadGguf(f"{file} is no file of safetensors, or a part of one ({error})") from error
        for name, shape in self.shapes.items():
            entry = self._entries.get(self.name(name), {})
            if tuple(entry.get("shape", ())) != shape or entry["dtype"] not in STORED:
                raise BadGguf(f"{file}: {self.name(name)} is {entry or 'missing'}, expected {shape} in {[*STORED]}")
            if self._start + entry["data_offsets"][1] > len(self._bytes):
                raise BadGguf(f"{file} ends before {self.name(name)}: a part of the file is missing")

    @staticmethod
    def _config(said: dict[str, Any]) -> LlamaConfig:
        heads = said["num_attention_heads"]
        return LlamaConfig(
            vocabulary=said["vocab_size"],
            dim=said["hidden_size"],
            layers=said["num_hidden_layers"],
            heads=heads,
            kv_heads=said.get("num_key_value_heads", heads),
            head_dim=said.get("head_dim") or said["hidden_size"] // heads,
            hidden=said["intermediate_size"],
            context=said["max_position_embeddings"],
            rope_theta=said.get("rope_theta", 10_000.0),
            norm_eps=said["rms_norm_eps"],
            tied=said.get("tie_word_embeddings", False),
        )

    def name(self, name: str) -> str:
        """Hugging Face's name of a tensor."""
        name = EMBEDDING if self._tied and name == OUTPUT else name
        parts = name.removesuffix(".weight").split(".")
        return f"model.layers.{parts[1]}.{PARTS[parts[2]]}.weight" if len(parts) == 3 else f"{ENDS[parts[0]]}.weight"

    def tensor(self, name: str) -> Floats:
        entry = self._entries[self.name(name)]
        start, end = (self._start + offset for offset in entry["data_offsets"])
        stored = self._bytes[start:end].view(STORED[entry["dtype"]]).reshape(self.shapes[name])
        if entry["dtype"] == "BF16":
            found = (stored.astype(np.uint32) << 16).view(np.float32)
        else:
            found = stored.astype(np.float32)
        turned = {"attn_q": self.config.heads, "attn_k": self.config.kv_heads}.get(name.split(".")[-2])
        return neighbours(found, turned) if turned else found


def neighbours(weights: Floats, heads: int) -> Floats:
    """Rows of a query or key matrix, a head's halves brought together: 0, D/2, 1, D/2 + 1, ..."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _expect(where: Path, found: LlamaConfig, wanted: LlamaConfig) -> bool:
    """Whether the file's output matrix is its embedding. Raises BadGguf where it holds another model than wanted."""
    if replace(found, tied=wanted.tied) != wanted or (wanted.tied and not found.tied):
        raise BadGguf(f"{where} holds another model: {found}, expected {wanted}")
    return found.tied
