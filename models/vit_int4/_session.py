"""Runs an exported network in ONNX Runtime on a CPU: images in, logits out, both tensors.

The runtime's optimisers all stay on, but one where it does harm. Where both operands of a product come from
DequantizeLinear, they are 8-bit numbers with a scale for each column, and the runtime makes one 8-bit product of that:
twice as fast as float32, and right. Where only weights do, it would round activations to 8 bits behind our back
(MatMulNBits at its accuracy level 4), which nobody asked for; and where a scale serves a group of a column and
activations are rounded too, its 8-bit product takes the scales for ones of columns and ends in an error. Such graphs
are loaded without these fusions: weights become float32 once, when the file is loaded. Measured:
docs/notes/vit_int4_deployment.md

Letters: N images.

Source: https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html; session options:
https://github.com/microsoft/onnxruntime/blob/main/include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h
"""

from __future__ import annotations

from typing import Any

import onnx
import onnxruntime
import torch
from onnx import TensorProto
from torch import Tensor

from archbench.hardware.cpu import usable_cores

ERRORS_ONLY = 3  # of the library's log


class Session:
    """Images (N, C, H, W) float32 -> logits (N, classes), where the images are."""

    def __init__(self, model: onnx.ModelProto, threads: int | None = None) -> None:
        options = options_for(model, threads)
        written = model.SerializeToString()
        self.session = onnxruntime.InferenceSession(written, options, providers=["CPUExecutionProvider"])
        self.classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        self._binding: Any = self.session.io_binding()

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        device, images_NCHW = images_NCHW.device, images_NCHW.to("cpu", torch.float32).contiguous()
        logits = images_NCHW.new_empty(len(images_NCHW), self.classes)
        for bind, name, tensor in (
            (self._binding.bind_input, "images", images_NCHW),
            (self._binding.bind_output, "logits", logits),
        ):
            bind(name, "cpu", 0, TensorProto.FLOAT, tuple(tensor.shape), tensor.data_ptr())
        self.session.run_with_iobinding(self._binding)
        return logits.to(device)


def options_for(model: onnx.ModelProto, threads: int | None = None) -> onnxruntime.SessionOptions:
    """What a graph is loaded with. ``threads``: None for every core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = ERRORS_ONLY
    # Contender and baseline take turns on the same cores: threads spin while a call runs and stop with it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not in_eight_bits(model):
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def in_eight_bits(model: onnx.ModelProto) -> bool:
    """Whether every matrix that is dequantised has a scale for each column and meets dequantised activations."""
    made = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    if any(attribute.name == "block_size" for node in made.values() for attribute in node.attribute):
        return False
    products = [node.input for node in model.graph.node if node.op_type == "MatMul"]
    return all(x in made or matrix not in made for x, matrix in products)
