"""PyTorch, operation by operation, float32 weights and cache.

What a runtime costs that knows nothing of quantised weights: every token reads them dequantised, four bytes each, and
an operation is called from Python for each line of the model. Keys and values lie in a buffer that is made once.

Source: own implementation (``_llama_torch.py``); Touvron et al. 2023, arXiv:2302.13971
"""

from __future__ import annotations

from archbench.models.edge_llm import EdgeCase
from archbench.models.edge_llm._llama_torch import Decoder
from archbench.track import Contender, Unavailable


def build(case: EdgeCase) -> Decoder:
    if case.kv != "f16":
        raise Unavailable(f"its cache is float32, not {case.kv}")
    return Decoder(case)


CONTENDER: Contender[EdgeCase] = Contender(build=build, family="torch")
