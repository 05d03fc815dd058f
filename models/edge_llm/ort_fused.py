"""ONNX Runtime with its fused operators: attention with rotary positions and cache, residual with norm, packed QKV.

The graph is written by hand over the weights of the GGUF file, whose blocks are regrouped and never requantised; the
products are MatMulNBits with int8 activations. Keys and values are fp32, the type of activations on a CPU, or int8 with
a fixed scale for each channel where the case wants 8 bits. The cache stays in one place, bound as input and output.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from archbench.models.edge_llm import EdgeCase
from archbench.models.edge_llm._onnx_session import SharedCache, fused_for
from archbench.track import Contender


def build(case: EdgeCase) -> SharedCache:
    return SharedCache(fused_for(case), case)


CONTENDER: Contender[EdgeCase] = Contender(build=build, family="peer")
