"""Runs an exported network in ONNX Runtime on a CPU: images in, logits out, both tensors.

Source: https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html
"""

from __future__ import annotations

from typing import Any

import onnx
import onnxruntime
from onnx import TensorProto
from torch import Tensor

from archbench.hardware.cpu import usable_cores

ERRORS_ONLY = 3  # of the library's log


class Session:
    """Images (N, C, H, W) float32 -> logits (N, classes)."""

    def __init__(self, model: onnx.ModelProto, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry("session.force_spinning_stop", "1")
        written = model.SerializeToString()
        self.session = onnxruntime.InferenceSession(written, options, providers=["CPUExecutionProvider"])
        self.classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        self._binding: Any = self.session.io_binding()

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        device, images_NCHW = images_NCHW.device, images_NCHW.cpu().contiguous()
        logits = images_NCHW.new_empty(len(images_NCHW), self.classes)
        for bind, name, tensor in (
            (self._binding.bind_input, "images", images_NCHW),
            (self._binding.bind_output, "logits", logits),
        ):
            bind(name, "cpu", 0, TensorProto.FLOAT, tuple(tensor.shape), tensor.data_ptr())
        self.session.run_with_iobinding(self._binding)
        return logits.to(device)
