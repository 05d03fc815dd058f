"""ort_fused with products in fp32: quantised weights become floats in registers, and activations stay floats.

What int8 activations are worth, in time here and in the gate's error. Float weights are not its question.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (MatMulNBits, accuracy_level)
"""

from archbench.models.edge_llm import EdgeCase
from archbench.models.edge_llm._onnx_graph import FP32
from archbench.models.edge_llm._onnx_session import SharedCache, fused_for
from archbench.track import Contender, Unavailable


def build(case: EdgeCase) -> SharedCache:
    if case.dtype != "int8":
        raise Unavailable(f"{case.weights} weights meet fp32 activations anyway: that is ort_fused")
    return SharedCache(fused_for(case, FP32), case)


CONTENDER: Contender[EdgeCase] = Contender(build=build, family="ablation")
