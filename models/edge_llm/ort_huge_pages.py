"""ort_fused with its memory in huge pages: what the walks of the page table cost that reads all weights per token.

The library asks for none, and where its weights lie is luck: two sessions alike differed by 7 % on 4 KiB pages and by
none on 2 MiB ones. llama.cpp does not ask either.

Source: https://docs.kernel.org/admin-guide/mm/transhuge.html
"""

from archbench.models.edge_llm import EdgeCase
from archbench.models.edge_llm._onnx_pages import in_huge_pages
from archbench.models.edge_llm._onnx_session import SharedCache, fused_for
from archbench.track import Contender


def build(case: EdgeCase) -> SharedCache:
    with in_huge_pages():
        decoder = SharedCache(fused_for(case), case)
    return decoder


CONTENDER: Contender[EdgeCase] = Contender(build=build, family="ablation")
