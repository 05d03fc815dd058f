"""A Llama as an ONNX graph of plain operators, as exporters wrote it before there were fused ones.

Nothing is done in one node that ONNX has smaller nodes for: the norm is six of them, a rotation eight, attention ten,
and the cache grows by ``Concat``. Only what reads quantised weights stays ONNX Runtime's own, or the weights would not
be the same.

Letters: T tokens, S cached tokens and these, D model, H query heads, K key heads, E head size.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto

from archbench.models.edge_llm._onnx_data import Piece
from archbench.models.edge_llm._onnx_graph import Builder, Cache, angles, cache_values, step_values
from archbench.models.edge_llm._weights import Weights


class Plain:
    """The graph's operators that are several nodes."""

    def __init__(self, build: Builder, positions: int) -> None:
        self.build, self.config = build, build.config
        cosines, sines = angles(self.config, positions)
        build.constant("cosines", cosines)
        build.constant("sines", sines)
        build.constant("eps", np.array(self.config.norm_eps, np.float32))
        build.constant("scale", np.array(1 / math.sqrt(self.config.head_dim), np.float32))
        build.constant("zero", np.zeros((), np.float32))
        build.constant("hidden", np.full((), -np.inf, np.float32))

    def shape(self, *sizes: int) -> str:
        return self.build.constant("shape" + "_".join(map(str, sizes)), np.array(sizes, np.int64))

    def integer(self, value: int) -> str:
        return self.build.constant(f"integer_{value}", np.array(value, np.int64))

    def positions(self) -> tuple[str, str]:
        """Positions of the tokens (T,), and the mask (T, S): 0 where a token may look, -inf elsewhere."""
        node = self.build.node
        total = self.build.cast("total", TensorProto.INT64)
        count = node("Gather", node("Shape", "ids"), self.integer(1))
        mine = node("Range", node("Sub", total, count), total, self.integer(1))
        all_of_them = node("Range", self.integer(0), total, self.integer(1))
        allowed = node("LessOrEqual", all_of_them, node("Unsqueeze", mine, self.shape(1)))
        return mine, node("Where", allowed, "zero", "hidden")

    def norm(self, x: str, name: str) -> str:
        node = self.build.node
        mean = node("ReduceMean", node("Mul", x, x), self.shape(-1), keepdims=1)
        scaled = node("Div", x, node("Sqrt", node("Add", mean, "eps")))
        return node("Mul", scaled, self.build.vector(name))

    def heads(self, x: str, count: int) -> str:
        """(1, T, count E) -> (1, count, T, E)."""
        node = self.build.node
        return node("Transpose", node("Reshape", x, self.shape(1, -1, count, self.config.head_dim)), perm=[0, 2, 1, 3])

    def rotated(self, x: str, count: int, cos: str, sin: str) -> str:
        """(1, T, count E) -> (1, count, T, E), each pair turned by its position's angle."""
        node = self.build.node
        pairs = node("Reshape", x, self.shape(1, -1, count, self.config.head_dim // 2, 2))
        even, odd = f"{pairs}_even", f"{pairs}_odd"
        node("Split", pairs, to=(even, odd), axis=-1, num_outputs=2)
        first = node("Sub", node("Mul", even, cos), node("Mul", odd, sin))
        second = node("Add", node("Mul", odd, cos), node("Mul", even, sin))
        return self.heads(node("Concat", first, second, axis=-1), count)

    def attention(self, x: str, layer: int, cos: str, sin: str, mask: str) -> str:
        """(1, T, D) -> (1, T, H E); extends the cache."""
        node, config, at = self.build.node, self.config, f"blk.{layer}."
        q, k, v = (self.build.product(x, f"{at}attn_{part}.weight") for part in "qkv")
        new = self.rotated(k, config.kv_heads, cos, sin), self.heads(v, config.kv_heads)
        cache = Cache(layer)
        for past, part, present in zip(cache.past, new, cache.present, strict=True):
            node("Concat", past, part, to=(present,), axis=2)
        keys, values = cache.present
        grouped = self.shape(1, config.kv_heads, -1, config.head_dim)  # query heads of a key head, one behind the other
        queries = node("Reshape", self.rotated(q, config.heads, cos, sin), grouped)
        scores = node("Mul", node("MatMul", queries, node("Transpose", keys, perm=[0, 1, 3, 2])), "scale")
        by_head = node("Reshape", scores, node("Concat", self.shape(1, config.heads), node("Shape", mask), axis=0))
        shares = node("Softmax", node("Add", by_head, mask), axis=-1)
        mixed = node("MatMul", node("Reshape", shares, node("Shape", scores)), values)
        mixed = node("Reshape", mixed, self.shape(1, config.heads, -1, config.head_dim))
        return node(
            "Reshape", node("Transpose", mixed, perm=[0, 2, 1, 3]), self.shape(1, -1, config.heads * config.head_dim)
        )


def plain(weights: Weights, pieces: dict[str, Piece], file: str, positions: int) -> onnx.ModelProto:
    """Inputs and outputs are those of ``fused``."""
    build, config = Builder(weights, pieces, file), weights.config
    parts, node = Plain(build, positions), build.node
    mine, mask = parts.positions()
    axes = parts.shape(1, 3)
    cos, sin = (
        node("Unsqueeze", node("Gather", table, mine), axes) for table in ("cosines", "sines")
    )  # (T, 1, E/2, 1)
    inputs, outputs = step_values(config)
    x = build.embedding("ids")
    for layer in range(config.layers):
        at = f"blk.{layer}."
        attended = parts.attention(parts.norm(x, f"{at}attn_norm.weight"), layer, cos, sin, mask)
        if layer == config.layers - 1:
            x, attended = (node("Gather", each, parts.shape(-1), axis=1) for each in (x, attended))
        x = node("Add", x, build.product(attended, f"{at}attn_output.weight"))
        normed = parts.norm(x, f"{at}ffn_norm.weight")
        gate, up = (build.product(normed, f"{at}ffn_{part}.weight") for part in ("gate", "up"))
        swish = node("Mul", gate, node("Sigmoid", gate))
        x = node("Add", x, build.product(node("Mul", swish, up), f"{at}ffn_down.weight"))
        inputs += cache_values(config, Cache(layer).past, "past")
        outputs += cache_values(config, Cache(layer).present, "present")
    build.product(parts.norm(x, "output_norm.weight"), weights.output, to=("logits",))
    return build.model("llama_plain", inputs, outputs)
