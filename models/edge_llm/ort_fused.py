"""ONNX Runtime with its fused operators: attention with rotary positions and cache, residual with norm, packed QKV.

The graph is written by hand over the weights of the GGUF file, whose blocks are regrouped and never requantised; the
products are MatMulNBits with int8 activations. Keys and values are fp32: on a CPU the attention operator's cache is of
its activations' type. The cache stays in one place, which is bound as input and output.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from archbench.models.edge_llm import EdgeCase
from archbench.models.edge_llm._onnx_graph import fused
from archbench.models.edge_llm._onnx_session import SharedCache, opened
from archbench.track import Contender


def build(case: EdgeCase) -> SharedCache:
    return SharedCache(opened(case, fused), case)


CONTENDER: Contender[EdgeCase] = Contender(build=build, family="peer")
