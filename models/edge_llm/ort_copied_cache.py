"""ort_fused with a cache that every step copies into a new one: what the shared buffer is worth.

The graph is the same one. The cache of a step is an output in memory of its own and the next step's input, as a caller
has it that binds nothing.

Source: https://onnxruntime.ai/docs/genai/howto/past-present-share-buffer.html
"""

from archbench.models.edge_llm import EdgeCase
from archbench.models.edge_llm._onnx_session import GrowingCache, fused_for, only_float
from archbench.track import Contender


def build(case: EdgeCase) -> GrowingCache:
    only_float(case)
    return GrowingCache(fused_for(case), case)


CONTENDER: Contender[EdgeCase] = Contender(build=build, family="ablation")
