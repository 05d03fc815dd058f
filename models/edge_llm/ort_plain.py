"""ONNX Runtime on a graph of plain operators, its own fusions left out: what ort_fused's operators are worth.

The same weights, the same products; norms, rotations, attention and the growing cache are ONNX's small operators, and
the library may fold constants only.

Source: https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html
"""

from archbench.models.edge_llm import EdgeCase
from archbench.models.edge_llm._onnx_plain import plain
from archbench.models.edge_llm._onnx_session import GrowingCache, only_float, opened
from archbench.track import Contender


def build(case: EdgeCase) -> GrowingCache:
    only_float(case)
    return GrowingCache(opened(case, plain, fusion=False), case)


CONTENDER: Contender[EdgeCase] = Contender(build=build, family="ablation")
