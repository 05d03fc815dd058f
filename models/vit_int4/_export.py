"""A network of this track as an ONNX graph, written node by node, with weights in 4 bits.

Every matrix (N, K) of the network is stored as (K, N) in the bits it has, two weights of 4 bits in a byte, with a scale
for each output (or for each group of inputs of an output), and DequantizeLinear makes numbers of it. Activations meet
QuantizeLinear and DequantizeLinear. A learned range starts at any number, not at a whole number of steps from zero: its
offset is subtracted before, levels count from 0, and what the offset contributes to a product, W 1 offset, is part of
the bias. Attention's operands get theirs back by an addition.

Letters: N images or outputs, T tokens, K inputs, D features, M heads.

Source: https://onnx.ai/onnx/operators/ (opset 21); names as timm's
https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/vision_transformer.py
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from archbench.models.vit_int4._layers import QuantLinear, QuantMix, QuantPatchEmbed
from archbench.models.vit_int4._quantiser import ActivationQuantiser
from archbench.models.vit_int4._vit import Attention, Block, VisionTransformer

OPSET, IR = 21, 10
WEIGHT_TYPES = {4: TensorProto.INT4, 8: TensorProto.INT8}
ACTIVATION_TYPES = {4: TensorProto.UINT4, 8: TensorProto.UINT8}

Form = Literal["int4", "qcdq"]
Array = npt.NDArray[Any]


def export(model: VisionTransformer, form: Form = "int4") -> onnx.ModelProto:
    """``images`` (N, C, H, W) -> ``logits`` (N, classes), N free."""
    return Graph(form).vision_transformer(model)


def array(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


class Graph:
    """Collects the nodes and tensors of a graph."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, onnx.TensorProto] = {}

    def node(self, op: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """Adds a node of one output; its name."""
        to = to or f"{op}{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [to], **attributes))
        return to

    def constant(self, name: str, values: Any, kind: int | None = None) -> str:
        """A tensor of the file; ``kind`` where it is none of numpy's types."""
        values = np.asarray(values)
        if name not in self._tensors:
            self._tensors[name] = numpy_helper.from_array(values, name) if kind is None else packed(name, values, kind)
        return name

    def shape(self, *sizes: int) -> str:
        return self.constant("shape_" + "_".join(map(str, sizes)), np.array(sizes, np.int64))

    def vision_transformer(self, model: VisionTransformer) -> onnx.ModelProto:
        size = model.size
        x = self.patches(model)
        for i, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            x = self.block(f"blocks.{i}.", block, x)
        x = self.norm("norm", model.norm, x)
        first = self.node("Gather", x, self.constant("first", np.array(0, np.int64)), axis=1)
        self.linear("head", model.head, first, to="logits")
        images = helper.make_tensor_value_info(
            "images", TensorProto.FLOAT, ("N", size.channels, size.image, size.image)
        )
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("N", size.classes))
        graph = helper.make_graph(self._nodes, "vit", [images], [logits], list(self._tensors.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="archbench")

    def patches(self, model: VisionTransformer) -> str:
        """Images -> (N, T, D): the class token and the patches' tokens, each with its position."""
        size, embed = model.size, model.patch_embed
        if isinstance(embed, QuantPatchEmbed):
            across, p = size.image // size.patch, size.patch
            x = self.node("Reshape", "images", self.shape(0, size.channels, across, p, across, p))
            x = self.node("Transpose", x, perm=[0, 2, 4, 1, 3, 5])
            x = self.node("Reshape", x, self.shape(0, across * across, size.channels * p * p))
            x = self.linear("patch_embed.proj", embed.proj, x)
        else:
            weight = self.constant("patch_embed.proj.weight", array(embed.proj.weight))
            bias = self.constant("patch_embed.proj.bias", array(embed.proj.bias))
            x = self.node("Conv", "images", weight, bias, strides=[size.patch, size.patch])
            x = self.node("Reshape", x, self.shape(0, size.dim, -1))
            x = self.node("Transpose", x, perm=[0, 2, 1])
        # Positions go on before the class token does, which gets its own beforehand: it is one row for all images.
        position = model.pos_embed.detach()
        x = self.node("Add", x, self.constant("pos_embed", array(position[:, 1:])))
        token = self.constant("cls_token", array(model.cls_token.detach() + position[:, :1]))
        images = self.node("Shape", "images", start=0, end=1)
        sizes = self.node("Concat", images, self.shape(1, size.dim), axis=0)
        return self.node("Concat", self.node("Expand", token, sizes), x, axis=1)

    def block(self, at: str, block: Block, x: str) -> str:
        mixed = self.attention(f"{at}attn.", block.attn, self.norm(f"{at}norm1", block.norm1, x))
        x = self.node("Add", x, mixed)
        hidden = self.linear(f"{at}mlp.fc1", block.mlp.fc1, self.norm(f"{at}norm2", block.norm2, x))
        out = self.linear(f"{at}mlp.fc2", block.mlp.fc2, self.node("Gelu", hidden))
        return self.node("Add", x, out)

    def norm(self, name: str, norm: nn.LayerNorm, x: str) -> str:
        weight = self.constant(f"{name}.weight", array(norm.weight))
        bias = self.constant(f"{name}.bias", array(norm.bias))
        return self.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)

    def attention(self, at: str, attention: Attention, x: str) -> str:
        heads, size = attention.heads, attention.proj.weight.shape[1] // attention.heads
        qkv = self.node("Reshape", self.linear(f"{at}qkv", attention.qkv, x), self.shape(0, 0, 3, heads, size))
        q, k, v = (self.node("Gather", qkv, self.constant(f"part{i}", np.array(i, np.int64)), axis=2) for i in range(3))
        q, v = (self.node("Transpose", each, perm=[0, 2, 1, 3]) for each in (q, v))
        k = self.node("Transpose", k, perm=[0, 2, 3, 1])
        q = self.node("Mul", q, self.constant("per_root", np.array(size**-0.5, np.float32)))
        mix = attention.mix
        if isinstance(mix, QuantMix):
            q, k, v = (self.rounded(f"{at}mix.{n}", getattr(mix, n), each, back=True)
                       for n, each in (("queries", q), ("keys", k), ("values", v)))  # fmt: skip
        shares = self.node("Softmax", self.node("MatMul", q, k), axis=-1)
        if isinstance(mix, QuantMix):
            shares = self.rounded(f"{at}mix.shares", mix.shares, shares, back=True)
        mixed = self.node("Transpose", self.node("MatMul", shares, v), perm=[0, 2, 1, 3])
        return self.linear(f"{at}proj", attention.proj, self.node("Reshape", mixed, self.shape(0, 0, heads * size)))

    def linear(self, name: str, layer: nn.Linear | QuantLinear, x: str, to: str = "") -> str:
        weight, bias = layer.weight.detach(), layer.bias
        quantiser = layer.weights if isinstance(layer, QuantLinear) else None
        inputs = layer.inputs if isinstance(layer, QuantLinear) else None
        if quantiser is None:
            matrix = self.constant(f"{name}.weight", array(weight.T))
        else:
            codes = quantiser.codes(weight)
            step = quantiser.step.view(len(weight), -1)
            rounded = codes.view(len(weight), step.shape[1], -1) * step[..., None]
            weight = rounded.view_as(weight)
            matrix = self.weights(f"{name}.weight", codes, step, quantiser.bits)
        total = torch.zeros(len(weight)) if bias is None else bias.detach()
        if inputs is not None:
            x = self.rounded(name + ".inputs", inputs, x, back=False)
            total = total.double() + weight.double().sum(1) * inputs.offset.detach().double()
        product = self.node("MatMul", x, matrix)
        return self.node("Add", product, self.constant(f"{name}.bias", array(total.float())), to=to)

    def weights(self, name: str, codes: Tensor, step: Tensor, bits: int) -> str:
        """Levels (N, K) and steps (N, K / group) -> numbers (K, N)."""
        kind = WEIGHT_TYPES[bits] if self.form == "int4" else TensorProto.INT8
        values = self.constant(name, array(codes.T), kind)
        groups = step.shape[1]
        if groups == 1:
            scale = self.constant(f"{name}.scale", array(step[:, 0]))
            return self.node("DequantizeLinear", values, scale, axis=1)
        scale = self.constant(f"{name}.scale", array(step.T))
        return self.node("DequantizeLinear", values, scale, axis=0, block_size=codes.shape[1] // groups)

    def rounded(self, name: str, quantiser: ActivationQuantiser, x: str, *, back: bool) -> str:
        """x on the quantiser's levels, less its offset; ``back``: with it."""
        offset = self.constant(f"{name}.offset", array(quantiser.offset))
        step = self.constant(f"{name}.scale", array(quantiser.step))
        x = self.node("Sub", x, offset)
        kind = ACTIVATION_TYPES[quantiser.bits] if self.form == "int4" else TensorProto.UINT8
        zero = self.constant(f"zero_{TensorProto.DataType.Name(kind)}", np.array(0, np.uint8), kind)
        x = self.node("QuantizeLinear", x, step, zero)
        if self.form == "qcdq" and quantiser.high < 255:
            least = self.constant("least", np.array(0, np.uint8))
            x = self.node("Clip", x, least, self.constant(f"most_{quantiser.bits}", np.array(quantiser.high, np.uint8)))
        x = self.node("DequantizeLinear", x, step, zero)
        return self.node("Add", x, offset) if back else x


def packed(name: str, values: Array, kind: int) -> onnx.TensorProto:
    """A tensor of a type numpy lacks: of 4 bits, two to a byte, the first in the low half."""
    if kind in (TensorProto.INT4, TensorProto.UINT4):
        flat = values.astype(np.uint8).reshape(-1) & 15
        flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
        data = (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8).tobytes()
    else:
        data = values.tobytes()
    return helper.make_tensor(name, kind, values.shape, data, raw=True)
