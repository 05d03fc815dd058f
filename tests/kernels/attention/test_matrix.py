"""Every length with every mask, grouping and dtype, with gradients and without, on this host's CPU.

A compiler builds each case alone, which takes seconds; it meets the cases of the track in the generic test, where any
two of these choices meet. All others answer the full product here, against one reference for each case.
"""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.checks import Wrong
from archbench.discovery import contender_modules, load_contender
from archbench.harness.measure import availability
from archbench.kernels.attention import TRACK, AttentionCase, _workload
from archbench.track import Contender, Place, Unavailable

PLACE = Place("cpu", cores=1, memory_bytes=4 << 30)
HEADS = {1: {"heads": 2}, 4: {"heads": 4, "kv_heads": 1}}  # by the number of query heads that share a KV head
MATRIX = [
    AttentionCase(length=length, causal=causal, dtype=dtype, backward=True, **HEADS[shared])
    for length, causal, shared, dtype in product((1, 63, 100, 127, 257, 1024), (False, True), HEADS, ("fp32", "bf16"))
]
# They have both passes in both dtypes on every CPU: who is missing has not been asked.
EVERYWHERE = {"torch_sdpa", "sdpa_math", "sdpa_flash", "naive", "manual_backward", "online_softmax"}


@pytest.fixture(scope="module")
def contenders() -> dict[str, Contender[AttentionCase]]:
    """Those that run here and answer the track's question, but for compilers."""
    loaded = {name: load_contender("attention", name) for name in contender_modules("attention")}
    entries = {name: one.entry for name, one in loaded.items() if availability(one, PLACE)[0] == "ok"}
    return {name: e for name, e in entries.items() if e and e.family != "compiler" and not e.differs}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small operations on several threads wait for each other on a busy machine; the generic test has two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", MATRIX, ids=lambda case: case.slug)
def test_values_and_gradients_are_right(
    case: AttentionCase, contenders: dict[str, Contender[AttentionCase]], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = TRACK.make_inputs(case, 31, "cpu")
    want = _workload.reference(case, *inputs)
    monkeypatch.setattr(_workload, "reference", lambda asked, *_: want if asked.backward else want[:1])
    wrong: dict[tuple[str, str], str] = {}
    answered: set[tuple[str, str]] = set()
    for (name, contender), backward in product(contenders.items(), (False, True)):
        asked, which = replace(case, backward=backward), (name, "fwdbwd" if backward else "fwd")
        given: Any = inputs if backward else inputs[:3]
        try:
            TRACK.gate(asked, given, TRACK.workload(asked, contender.build(asked))(*given))
        except Unavailable:
            continue
        except Wrong as error:
            wrong[which] = str(error)
        answered.add(which)
    assert wrong == {}
    assert answered >= set(product(EVERYWHERE, ("fwd", "fwdbwd")))
