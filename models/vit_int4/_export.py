"""A network of this track as an ONNX graph, written node by node, with weights in 4 bits.

Every matrix (N, K) of the network is stored as (K, N) in the bits it has, two weights of 4 bits in a byte, with a scale
for each output (or for each group of inputs of an output), and DequantizeLinear makes numbers of it. Activations meet
QuantizeLinear and DequantizeLinear. A learned range starts at any number, not at a whole number of steps from zero: its
offset is subtracted before, levels count from 0, and what the offset contributes to a product, W 1 offset, is part of
the bias. Attention's operands get theirs back by an addition.

Runtimes differ in what they do with 4 bits, hence three forms of the same network:

- ``int4``: weights stored as INT4 and cast to INT8, activations in UINT8 and clipped to their levels. A runtime with
  8-bit products makes the cast when it loads the file.
- ``int4_direct``: INT4 and UINT4 up to the product, for runtimes that have such products.
- ``qcdq``: INT8 and a clip, as Brevitas writes it, in nearly twice the bytes.

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

from archbench.models.vit_int4._layers import QuantGelu, QuantLinear, QuantPatchEmbed
from archbench.models.vit_int4._quantiser import ActivationQuantiser, WeightQuantiser
from archbench.models.vit_int4._vit import Attention, Block, VisionTransformer

OPSET, IR = 21, 10

Form = Literal["int4", "int4_direct", "qcdq"]
Array = npt.NDArray[Any]


@torch.no_grad()
def export(model: VisionTransformer, form: Form = "int4") -> onnx.ModelProto:
    """``images`` (N, C, H, W) -> ``logits`` (N, classes), N free."""
    return _Graph(form).vision_transformer(model)


class _Graph:
    """Collects the nodes and tensors of a graph."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, onnx.TensorProto] = {}

    def node(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Adds a node of one output; its name."""
        output = output or f"{op}{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, values: Tensor | Array, kind: int | None = None) -> str:
        """A tensor of the file; ``kind``: INT4 or UINT4, which numpy lacks."""
        if isinstance(values, Tensor):
            values = np.ascontiguousarray(values.cpu().numpy())
        if name not in self._tensors:
            made = numpy_helper.from_array(values, name) if kind is None else packed(name, values, kind)
            self._tensors[name] = made
        return name

    def shape(self, *sizes: int) -> str:
        return self.constant("shape_" + "_".join(map(str, sizes)), np.array(sizes, np.int64))

    def level(self, value: int) -> str:
        return self.constant(f"level_{value}", np.array(value, np.uint8))

    def vision_transformer(self, model: VisionTransformer) -> onnx.ModelProto:
        size = model.size
        x = self.tokens(model)
        for i, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            x = self.block(f"blocks.{i}.", block, x)
        first = self.node("Gather", self.norm("norm", model.norm, x), self.constant("first", np.array(0)), axis=1)
        self.linear("head", model.head, first, output="logits")
        pixels = ("N", size.channels, size.image, size.image)
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, pixels)
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("N", size.classes))
        graph = helper.make_graph(self._nodes, "vit", [images], [logits], list(self._tensors.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="archbench")

    def tokens(self, model: VisionTransformer) -> str:
        """Images -> (N, T, D): the class token and the patches' tokens, each with its position."""
        x, position = self.patches(model), model.pos_embed
        # The class token gets its position beforehand: it is the same row for all images.
        x = self.node("Add", x, self.constant("pos_embed", position[:, 1:]))
        token = self.constant("cls_token", model.cls_token + position[:, :1])
        images = self.node("Shape", "images", start=0, end=1)
        tokens = self.node("Expand", token, self.node("Concat", images, self.shape(1, model.size.dim), axis=0))
        return self.node("Concat", tokens, x, axis=1)

    def patches(self, model: VisionTransformer) -> str:
        size, embed = model.size, model.patch_embed
        p, across = size.patch, size.image // size.patch
        if isinstance(embed, QuantPatchEmbed):
            x = self.node("Reshape", "images", self.shape(0, size.channels, across, p, across, p))
            x = self.node("Transpose", x, perm=[0, 2, 4, 1, 3, 5])
            x = self.node("Reshape", x, self.shape(0, across * across, size.channels * p * p))
            return self.linear("patch_embed.proj", embed.proj, x)
        weight = self.constant("patch_embed.proj.weight", embed.proj.weight)
        x = self.node("Conv", "images", weight, self.constant("patch_embed.proj.bias", embed.proj.bias), strides=[p, p])
        return self.node("Transpose", self.node("Reshape", x, self.shape(0, size.dim, -1)), perm=[0, 2, 1])

    def block(self, at: str, block: Block, x: str) -> str:
        mixed = self.attention(f"{at}attn.", block.attn, self.norm(f"{at}norm1", block.norm1, x))
        x = self.node("Add", x, mixed)
        hidden = self.linear(f"{at}mlp.fc1", block.mlp.fc1, self.norm(f"{at}norm2", block.norm2, x))
        if isinstance(block.mlp.act, QuantGelu):
            hidden = self.rounded(f"{at}mlp.act", block.mlp.act.inputs, hidden, back=True)
        return self.node("Add", x, self.linear(f"{at}mlp.fc2", block.mlp.fc2, self.node("Gelu", hidden)))

    def norm(self, name: str, norm: nn.LayerNorm, x: str) -> str:
        weight, bias = self.constant(f"{name}.weight", norm.weight), self.constant(f"{name}.bias", norm.bias)
        return self.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)

    def attention(self, at: str, attention: Attention, x: str) -> str:
        heads, size = attention.heads, attention.proj.weight.shape[1] // attention.heads
        qkv = self.linear(f"{at}qkv", attention.qkv, x)
        parts = [f"{at}{part}" for part in ("q", "k", "v")]
        self._nodes.append(helper.make_node("Split", [qkv], parts, axis=-1, num_outputs=3))
        apart = (self.node("Reshape", part, self.shape(0, 0, heads, size)) for part in parts)
        q, k, v = (self.node("Transpose", part, perm=[0, 2, 1, 3]) for part in apart)
        q = self.node("Mul", q, self.constant("per_root", np.array(size**-0.5, np.float32)))
        mix = attention.mix

        def kept(name: str, x: str) -> str:
            quantiser = getattr(mix, name, None)
            return (
                self.rounded(f"{at}mix.{name}", quantiser, x, back=True)
                if isinstance(quantiser, ActivationQuantiser)
                else x
            )

        scores = self.node("MatMul", kept("queries", q), self.node("Transpose", kept("keys", k), perm=[0, 1, 3, 2]))
        shares = kept("shares", self.node("Softmax", kept("scores", scores), axis=-1))
        v = kept("values", v)
        mixed = self.node("Transpose", self.node("MatMul", shares, v), perm=[0, 2, 1, 3])
        return self.linear(f"{at}proj", attention.proj, self.node("Reshape", mixed, self.shape(0, 0, heads * size)))

    def linear(self, name: str, layer: nn.Linear | QuantLinear, x: str, output: str = "") -> str:
        weight, quantiser, inputs = layer.weight, None, None
        if isinstance(layer, QuantLinear):
            quantiser, inputs = layer.weights, layer.inputs
        bias = torch.zeros_like(weight[:, 0]) if layer.bias is None else layer.bias
        if quantiser is None:
            matrix = self.constant(f"{name}.weight", weight.T)
        else:
            weight = quantiser(weight)
            matrix = self.levels(f"{name}.weight", weight, quantiser)
        if inputs is not None:
            x = self.rounded(f"{name}.inputs", inputs, x)
            bias = (bias + weight.double().sum(1) * inputs.offset).float()
        return self.node("Add", self.node("MatMul", x, matrix), self.constant(f"{name}.bias", bias), output=output)

    def levels(self, name: str, weight: Tensor, quantiser: WeightQuantiser) -> str:
        """Weights (N, K) that lie on levels, stored as these; the numbers (K, N) again."""
        outputs, inputs = weight.shape
        levels = (weight.view(-1, quantiser.columns) / quantiser.step).round().to(torch.int8).view_as(weight)
        packs = quantiser.bits == 4 and self.form != "qcdq"
        values = self.constant(name, levels.T, TensorProto.INT4 if packs else None)
        if packs and self.form == "int4":
            values = self.node("Cast", values, to=TensorProto.INT8)
        step = quantiser.step.view(outputs, -1)
        if quantiser.columns == inputs:
            return self.node("DequantizeLinear", values, self.constant(f"{name}.scale", step[:, 0]), axis=1)
        scale = self.constant(f"{name}.scale", step.T)
        return self.node("DequantizeLinear", values, scale, axis=0, block_size=quantiser.columns)

    def rounded(self, name: str, quantiser: ActivationQuantiser, x: str, *, back: bool = False) -> str:
        """x on the quantiser's levels, less its offset; ``back``: with it."""
        if quantiser.bits > 8:
            raise ValueError(f"{name} has {quantiser.bits} bits: a graph has activations of 8 at most")
        offset, step = self.constant(f"{name}.offset", quantiser.offset), self.constant(f"{name}.scale", quantiser.step)
        packs = quantiser.bits == 4 and self.form == "int4_direct"
        zero = self.constant("level_0_of_4_bits", np.array(0), TensorProto.UINT4) if packs else self.level(0)
        x = self.node("QuantizeLinear", self.node("Sub", x, offset), step, zero)
        if quantiser.bits < 8 and not packs:
            x = self.node("Clip", x, zero, self.level(int(quantiser.high)))
        x = self.node("DequantizeLinear", x, step, zero)
        return self.node("Add", x, offset) if back else x


def packed(name: str, values: Array, kind: int) -> onnx.TensorProto:
    """A tensor of 4-bit numbers, two to a byte, the first in the low half."""
    flat = values.reshape(-1).astype(np.uint8) & 15
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    return helper.make_tensor(name, kind, values.shape, (flat[0::2] | flat[1::2] << 4).tobytes(), raw=True)
