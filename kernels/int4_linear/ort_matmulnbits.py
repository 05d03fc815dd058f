"""ONNX Runtime's MatMulNBits: blocks of 4-bit codes, a scale each; activations rounded to 8 bits where the case allows.

One graph holds all matrices of the case. Activations are rounded a block at a time (accuracy level 4), the fastest
setting on processors with 8-bit dot products; elsewhere they stay float32 (level 1).

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (com.microsoft.MatMulNBits)
"""

from __future__ import annotations

from typing import Any

import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from archbench.hardware.cpu import usable_cores
from archbench.kernels.int4_linear import Int4Case
from archbench.kernels.int4_linear._weights import matrices
from archbench.track import Call, Contender, Unavailable

OPSET, MICROSOFT_OPSET, IR = 21, 1, 10
MICROSOFT = "com.microsoft"
INT8, FP32 = 4, 1  # accuracy levels
GROUPS = (16, 32, 64, 128, 256)


def graph(case: Int4Case) -> onnx.ModelProto:
    """x -> y0, y1 ...: a node for each matrix."""
    nodes, tensors, outputs = [], [], []
    for i, matrix in enumerate(matrices(case)):
        shape = (case.outputs, case.inputs // case.group, case.group // 2)
        tensors += [
            numpy_helper.from_array(matrix.pairs().reshape(shape), f"codes{i}"),
            numpy_helper.from_array(matrix.scales.reshape(-1), f"scales{i}"),
        ]
        level = INT8 if case.kind == "w4a8" else FP32
        sizes = {"N": case.outputs, "K": case.inputs, "bits": 4, "block_size": case.group, "accuracy_level": level}
        names = ["x", f"codes{i}", f"scales{i}"]
        nodes.append(helper.make_node("MatMulNBits", names, [f"y{i}"], domain=MICROSOFT, **sizes))
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, (case.tokens, case.outputs)))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (case.tokens, case.inputs))
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, MICROSOFT_OPSET)]
    body = helper.make_graph(nodes, "int4_linear", [x], outputs, tensors)
    return helper.make_model(body, opset_imports=opsets, ir_version=IR, producer_name="archbench")


def build(case: Int4Case) -> Call:
    if case.kind == "w4a16":
        raise Unavailable("takes no bfloat16 on a CPU")
    if case.group not in GROUPS:
        raise Unavailable(f"groups of {', '.join(map(str, GROUPS))} only, not {case.group}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads or usable_cores()
    options.log_severity_level = 3
    # Contender and baseline take turns on the same cores: threads spin while a call runs and stop with it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = graph(case)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding: Any = session.io_binding()

    def matmulnbits(x: Tensor) -> Tensor:
        y = x.new_empty(case.layers, case.tokens, case.outputs)
        binding.bind_input("x", "cpu", 0, TensorProto.FLOAT, tuple(x.shape), x.data_ptr())
        for i, out in enumerate(y):
            binding.bind_output(f"y{i}", "cpu", 0, TensorProto.FLOAT, tuple(out.shape), out.data_ptr())
        session.run_with_iobinding(binding)
        return y

    return matmulnbits


CONTENDER: Contender[Int4Case] = Contender(build=build, device="cpu", family="peer")
