"""ort_fused without a cache: every token reads the whole text again. What keeping keys and values is worth.

The graph is the same one; only the last token goes through the vocabulary's matrix.

Source: Pope et al. 2022, Efficiently Scaling Transformer Inference, https://arxiv.org/abs/2211.05102
"""

from archbench.models.edge_llm import EdgeCase
from archbench.models.edge_llm._onnx_session import NoCache, fused_for, only_float
from archbench.track import Contender, Unavailable

LARGEST = 3e12  # operations of one pass: some ten seconds of a small machine


def build(case: EdgeCase) -> NoCache:
    only_float(case)
    texts = range(case.depth + 1, case.depth + case.tokens + 1) if case.phase == "tg" else [case.depth + case.tokens]
    read = sum(texts)
    if 2.0 * case.config.layer_weights * read > LARGEST:
        raise Unavailable(f"reads {read} tokens for {case.tokens}: it would take minutes")
    return NoCache(fused_for(case), case)


CONTENDER: Contender[EdgeCase] = Contender(build=build, family="ablation")
