"""ONNX Runtime on CPU: MultiHeadAttention, and GroupQueryAttention under a causal mask.

The two fused operators ONNX Runtime puts into an exported transformer, each alone in a graph: MultiHeadAttention walks
blocks of keys with a running softmax but leaves that path for a mask, which GroupQueryAttention always has. Inputs and
output are bound to torch's memory. The operators want heads behind the length; as every KV head is handed over as a
batch entry of its own, that is a view, but for q and the output of grouped causal cases, which are reordered. Without a
mask, the R query heads of a KV head are R * T rows against the same keys, as if of one head.

Letters: B batch, H query heads, G KV heads, R = H / G query heads per KV head, T length, D head size, N = B * G.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from archbench.kernels.attention import AttentionCase
from archbench.track import Call, Contender, Unavailable

ELEMENTS = {"fp32": (TensorProto.FLOAT, np.float32), "fp16": (TensorProto.FLOAT16, np.float16)}
OPSET, CONTRIB_OPSET, IR_VERSION = 21, 1, 10
ERRORS_ONLY = 3


def model(case: AttentionCase) -> bytes:
    """The graph of one operator: q, k, v -> out, with the sizes of the case."""
    element, _ = ELEMENTS[case.dtype]
    entries, shared = case.batch * case.groups, case.heads // case.groups
    kv_shape = (entries, case.length, case.head_dim)
    common = {"domain": "com.microsoft", "scale": 1 / math.sqrt(case.head_dim)}
    if case.causal:
        q_shape = (entries, case.length, shared * case.head_dim)
        names = ["q", "k", "v", "", "", "last_key", "keys"]
        node = helper.make_node("GroupQueryAttention", names, ["out"], num_heads=shared, kv_num_heads=1, **common)
        constants = [
            helper.make_tensor("last_key", TensorProto.INT32, [entries], [case.length - 1] * entries),
            helper.make_tensor("keys", TensorProto.INT32, [1], [case.length]),
        ]
    else:
        q_shape = (entries, shared * case.length, case.head_dim)
        node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["out"], num_heads=1, **common)
        constants = []
    shapes = {"q": q_shape, "k": kv_shape, "v": kv_shape}
    given = [helper.make_tensor_value_info(name, element, shape) for name, shape in shapes.items()]
    answer = helper.make_tensor_value_info("out", element, q_shape)
    graph = helper.make_graph([node], "attention", given, [answer], initializer=constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", CONTRIB_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()


def session(case: AttentionCase) -> onnxruntime.InferenceSession:
    """The graph ready to run, with as many threads as torch has now."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = ERRORS_ONLY
    # Its threads spin for a while after a call, which the baseline's samples would pay for.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model(case), options, providers=["CPUExecutionProvider"])


def _build(case: AttentionCase) -> Call:
    if case.backward:
        raise Unavailable("ONNX Runtime has no gradient of its attention")
    if case.dtype not in ELEMENTS:
        raise Unavailable(f"ONNX Runtime's fused attention on CPU has fp32 and fp16, no {case.dtype}")
    ready = session(case)
    element = ELEMENTS[case.dtype][1]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        binding = ready.io_binding()
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            binding.bind_input(name, "cpu", 0, element, tensor.shape, tensor.data_ptr())
        binding.bind_output("out", "cpu", 0, element, out.shape, out.data_ptr())
        ready.run_with_iobinding(binding)
        return out

    def rows(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        k_NTD, v_NTD = k_BGTD.contiguous().flatten(0, 1), v_BGTD.contiguous().flatten(0, 1)
        q_NSD = q_BHTD.contiguous().view(k_NTD.shape[0], -1, case.head_dim)
        return run(q_NSD, k_NTD, v_NTD).view(q_BHTD.shape)

    def causal(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        k_NTD, v_NTD = k_BGTD.contiguous().flatten(0, 1), v_BGTD.contiguous().flatten(0, 1)
        q_NRTD = q_BHTD.unflatten(1, (case.groups, -1)).flatten(0, 1)
        out_NTE = run(q_NRTD.transpose(1, 2).flatten(2).contiguous(), k_NTD, v_NTD)
        return out_NTE.unflatten(2, (-1, case.head_dim)).transpose(1, 2).reshape(q_BHTD.shape)

    return causal if case.causal else rows


CONTENDER: Contender[AttentionCase] = Contender(build=_build, device="cpu", family="peer")
