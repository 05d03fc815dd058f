"""torch.compile of the same model: one graph of a layer, made by Inductor, for all layers and steps.

Norms, rotations, the gate and the residual sums become a few loops of C++ each; matrix products stay the library's, on
float32 weights. So that one graph serves every token, a step attends to all positions of the case behind a mask. One
graph of the whole step would save a call from Python a layer, but its compilation takes as many times longer as there
are layers. The prefix is evaluated before, by the uncompiled model.

Source: Ansel et al. 2024, PyTorch 2 (ASPLOS); own implementation (``_llama_torch.py``)
"""

from __future__ import annotations

import numpy as np
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError

from archbench.models.edge_llm import EdgeCase
from archbench.models.edge_llm._llama_torch import Decoder
from archbench.track import Contender, Unavailable


def build(case: EdgeCase) -> Decoder:
    if case.kv != "f16":
        raise Unavailable(f"its cache is float32, not {case.kv}")
    decoder = Decoder(case, compiled=True)
    decoder.rewind()
    try:
        decoder(np.zeros(case.tokens if case.phase == "pp" else 1, np.int32))
    except (TorchDynamoException, InductorError) as error:
        why = " ".join(str(error).splitlines()[:2])  # who failed, and with what
        raise Unavailable(f"torch.compile fails here: {why}") from error
    return decoder


CONTENDER: Contender[EdgeCase] = Contender(build=build, family="compiler")
