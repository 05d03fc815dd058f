"""A Llama as an ONNX graph: the pieces every variant is made of, and the fused one.

The graph is written node by node. It takes token ids (1, T) and a cache of keys and values, and gives the logits after
the last token and the cache again. Weights stay outside, in the file of ``_onnx_data.py``; what the graph holds itself
are norms and tables of angles.

``fused`` uses ONNX Runtime's own operators where one of them does the work of several: attention with rotary positions
and cache (GroupQueryAttention), residual sum and norm (SkipSimplifiedLayerNormalization), and one multiplication for
queries, keys and values. Only the last token goes through the last layer's feed-forward block and the vocabulary.

Letters: T tokens, S cached tokens and these, D model, H query heads, K key heads, E head size, V vocabulary.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from archbench.models.edge_llm._onnx_data import BITS, BLOCK, Piece
from archbench.models.edge_llm._weights import Weights

OPSET, MICROSOFT_OPSET, IR = 23, 1, 11
MICROSOFT = "com.microsoft"
INT8, FP32 = 4, 1  # accuracy levels of MatMulNBits: what activations become
INT8_CACHE = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}

Scales = list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]


@dataclass(frozen=True)
class Cache:
    """The names of a layer's cache: what goes in, what comes out."""

    layer: int

    @property
    def past(self) -> tuple[str, str]:
        return f"past_key_{self.layer}", f"past_value_{self.layer}"

    @property
    def present(self) -> tuple[str, str]:
        return f"present_key_{self.layer}", f"present_value_{self.layer}"

    @property
    def scales(self) -> tuple[str, str]:
        return f"key_scales_{self.layer}", f"value_scales_{self.layer}"


class Builder:
    """Collects the nodes and tensors of a graph."""

    def __init__(self, weights: Weights, pieces: dict[str, Piece], file: str, accuracy: int = INT8) -> None:
        self.weights, self.config = weights, weights.config
        self._pieces, self._file, self._accuracy = pieces, file, accuracy
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, onnx.TensorProto] = {}

    def node(self, op: str, *inputs: str, to: tuple[str, ...] = (), domain: str = "", **attributes: Any) -> str:
        """Adds a node; the name of its first output."""
        outputs = to or (f"{op}_{len(self._nodes)}",)
        self._nodes.append(helper.make_node(op, list(inputs), list(outputs), domain=domain, **attributes))
        return outputs[0]

    def cast(self, x: str, kind: int) -> str:
        name = f"Cast_{len(self._nodes)}"
        self._nodes.append(helper.make_node("Cast", [x], [name], to=kind))
        return name

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        self._tensors.setdefault(name, numpy_helper.from_array(values, name))
        return name

    def vector(self, name: str) -> str:
        """A vector of the model: a norm's weights."""
        return self.constant(name, self.weights.floats(name).reshape(-1))

    def embedding(self, ids: str) -> str:
        """Token ids (1, T) -> (1, T, D), from the blocks as they are."""
        name = "token_embd.weight"
        kind = self.weights.kind(name)
        if kind not in BITS:
            return self._as_float(self.node("Gather", self._external((name,), name), ids), kind)
        rows, blocks, size = self._pieces[name].shape
        values = self._external((name,), "embedding", (rows, blocks * size))
        return self.node(
            "GatherBlockQuantized", values, ids, self._external((f"{name}:scales",), f"{name}:scales"),
            domain=MICROSOFT, bits=BITS[kind], block_size=BLOCK, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def product(self, x: str, *names: str, to: tuple[str, ...] = ()) -> str:
        """(1, T, inputs) -> (1, T, outputs of the matrices, one behind the other)."""
        kind = self.weights.kind(names[0])
        title = "+".join(names)
        if kind not in BITS:
            rows_first = self._as_float(self._external(names, title), kind)
            return self.node("MatMul", x, self.node("Transpose", rows_first, perm=[1, 0]), to=to)
        values, scales = (
            self._external(names, title),
            self._external([f"{name}:scales" for name in names], f"{title}:scales"),
        )
        outputs, inputs = sum(self.weights.shape(name)[0] for name in names), self.weights.shape(names[0])[1]
        return self.node(
            "MatMulNBits", x, values, scales, to=to, domain=MICROSOFT,
            N=outputs, K=inputs, bits=BITS[kind], block_size=BLOCK, accuracy_level=self._accuracy,
        )  # fmt: skip

    def model(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, name, inputs, outputs, list(self._tensors.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, MICROSOFT_OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="archbench")

    def _as_float(self, x: str, kind: str) -> str:
        return x if kind == "f32" else self.cast(x, TensorProto.FLOAT)

    def _external(self, names: Any, title: str, shape: tuple[int, ...] | None = None) -> str:
        """A tensor of the data file, or several that follow one another there as one."""
        pieces = [self._pieces[name] for name in names]
        first = pieces[0]
        if title not in self._tensors:
            for before, after in pairwise(pieces):
                assert before.offset + before.bytes == after.offset, f"{names} do not follow one another"
            tensor = TensorProto(name=title, data_type=first.type, data_location=TensorProto.EXTERNAL)
            tensor.dims.extend(shape or (sum(piece.shape[0] for piece in pieces), *first.shape[1:]))
            for key, value in (
                ("location", self._file),
                ("offset", first.offset),
                ("length", sum(p.bytes for p in pieces)),
            ):
                tensor.external_data.add(key=key, value=str(value))
            self._tensors[title] = tensor
        return title


def angles(config: Any, positions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosines and sines (positions, E / 2) of the rotary pairs."""
    frequencies = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    table = np.outer(np.arange(positions), frequencies)
    return np.cos(table).astype(np.float32), np.sin(table).astype(np.float32)


def step_values(config: Any) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """What goes in and comes out of a step beside the cache."""
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT32, (1, "tokens")),
        helper.make_tensor_value_info("last", TensorProto.INT32, (1,)),
        helper.make_tensor_value_info("total", TensorProto.INT32, ()),
    ]
    return inputs, [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 1, config.vocabulary))]


def cache_values(
    config: Any, names: tuple[str, str], length: str, kind: int = TensorProto.FLOAT
) -> list[onnx.ValueInfoProto]:
    shape = (1, config.kv_heads, length, config.head_dim)
    return [helper.make_tensor_value_info(name, kind, shape) for name in names]


def fused(
    weights: Weights, pieces: dict[str, Piece], file: str, positions: int,
    accuracy: int = INT8, scales: Scales | None = None,
) -> onnx.ModelProto:  # fmt: skip
    """Inputs: ids (1, T), last (1,) = S - 1, total () = S, the cache. ``positions``: how many there may be.

    With scales (1, K, 1, E) of each layer's keys and values the cache is int8.
    """
    build, config = Builder(weights, pieces, file, accuracy), weights.config
    cosines, sines = angles(config, positions)
    cos, sin = build.constant("cosines", cosines), build.constant("sines", sines)
    only_last = build.constant("only_last", np.array([-1], np.int64))
    x = build.embedding("ids")
    branch: str | None = None
    inputs, outputs = step_values(config)

    def norm(gamma: str) -> tuple[str, str]:
        """The norm of the sum of x and the branch, and the sum."""
        gamma = build.vector(gamma)
        if branch is None:
            return build.node("RMSNormalization", x, gamma, epsilon=config.norm_eps, axis=-1), x
        to = (f"{gamma}:normed", "", "", f"{gamma}:sum")
        build.node(
            "SkipSimplifiedLayerNormalization", x, branch, gamma, to=to, domain=MICROSOFT, epsilon=config.norm_eps
        )
        return to[0], to[3]

    for layer in range(config.layers):
        at, cache = f"blk.{layer}.", Cache(layer)
        normed, x = norm(f"{at}attn_norm.weight")
        packed = build.product(normed, f"{at}attn_q.weight", f"{at}attn_k.weight", f"{at}attn_v.weight")
        kind, more, how = TensorProto.FLOAT, [], {}
        if scales is not None:
            kind, how = TensorProto.INT8, INT8_CACHE
            given = zip(cache.scales, scales[layer], strict=True)
            more = ["", "", "", *(build.constant(name, values) for name, values in given)]
        attended = build.node(
            "GroupQueryAttention", packed, "", "", *cache.past, "last", "total", cos, sin, *more,
            to=(f"{at}attended", *cache.present), domain=MICROSOFT,
            num_heads=config.heads, kv_num_heads=config.kv_heads, do_rotary=1, rotary_interleaved=1, **how,
        )  # fmt: skip
        if layer == config.layers - 1:
            x, attended = (build.node("Gather", each, only_last, axis=1) for each in (x, attended))
        branch = build.product(attended, f"{at}attn_output.weight")
        normed, x = norm(f"{at}ffn_norm.weight")
        gate, up = (build.product(normed, f"{at}ffn_{part}.weight") for part in ("gate", "up"))
        hidden = build.node("Mul", build.node("QuickGelu", gate, domain=MICROSOFT, alpha=1.0), up)
        branch = build.product(hidden, f"{at}ffn_down.weight")
        inputs += cache_values(config, cache.past, "past", kind)
        outputs += cache_values(config, cache.present, "present", kind)

    normed, _ = norm("output_norm.weight")
    build.product(normed, weights.output, to=("logits",))
    return build.model("llama_fused", inputs, outputs)
