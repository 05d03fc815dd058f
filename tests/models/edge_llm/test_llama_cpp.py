"""The contender that calls llama.cpp: its cache, its settings, what it refuses, and that nothing of it stays behind."""

# ruff: noqa: E402 - the skip comes before what needs the package
from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

llama_cpp = pytest.importorskip(
    "llama_cpp", reason="needs the package llama-cpp-python: pip install archbench[edge] compiles it, for minutes"
)

from archbench.models.edge_llm import TRACK, EdgeCase, Logits, Tokens, gate, make_inputs, workload
from archbench.models.edge_llm import llama_cpp as contender
from archbench.models.edge_llm.llama_cpp import LlamaDecoder, build, context_params
from archbench.track import Unavailable

TEXT = EdgeCase("tiny_random", "tg", 9, 31, threads=1)


def tokens(case: EdgeCase, seed: int = 3) -> Tokens:
    return make_inputs(case, seed, "cpu")[0]


def answer(case: EdgeCase, decoder: LlamaDecoder | None = None) -> Logits:
    logits: Logits = workload(case, decoder or build(case))(tokens(case))
    return logits


def distance(got: Logits, want: Logits) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize(
    "case",
    [
        replace(TEXT, kv="q8_0"),
        replace(TEXT, weights="q8_0", kv="q8_0"),
        replace(TEXT, weights="q4_k_m"),
        replace(TEXT, weights="q4_k_m", phase="pp", tokens=40),
        replace(TEXT, weights="f16", tokens=5, depth=0, threads=2),
    ],
    ids=lambda case: case.slug,
)
def test_weights_and_caches_beyond_the_test_cases_are_right(case: EdgeCase) -> None:
    assert case not in TRACK.test_cases
    assert 0 < gate(case, (tokens(case),), answer(case)) < 0.05


@pytest.mark.parametrize("case", [TEXT, replace(TEXT, depth=0), replace(TEXT, kv="q8_0")], ids=lambda case: case.slug)
def test_after_rewinding_it_answers_as_a_fresh_one(case: EdgeCase) -> None:
    decoder = build(case)
    workload(case, decoder)(tokens(case, seed=8))  # other tokens lie where these will
    decoder(tokens(case, seed=9))
    np.testing.assert_array_equal(answer(case, decoder), answer(case))


@pytest.mark.parametrize("weights", ["f32", "q4_0"])
def test_a_token_at_a_time_is_the_prompt_at_once(weights: str) -> None:
    case = replace(TEXT, weights=weights)
    (last,) = answer(replace(case, phase="pp"))
    # Float32 differs by the order of sums. Kernels for one row and for several round activations alike, and then sum
    # in another order: what is near a half goes to the other integer.
    assert distance(answer(case)[-1], last) < (2e-6 if weights == "f32" else 0.01)


def test_the_depth_is_evaluated_before_and_counts() -> None:
    deep, shallow = answer(TEXT), answer(replace(TEXT, depth=0))
    assert distance(deep, shallow) > 0.1


def test_a_prompt_longer_than_a_batch_is_cut() -> None:
    case = replace(TEXT, phase="pp", tokens=40, weights="f32")
    decoder = build(case)
    assert len(decoder._tokens) == 71  # all of the case: llama.cpp aborts the process at a larger batch
    whole = answer(case, decoder)
    decoder._tokens = decoder._tokens[:7]
    assert distance(answer(case, decoder), whole) < 2e-6


def test_threads_are_the_case_s_and_every_core_where_it_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contender, "usable_cores", lambda: 7)
    for threads, expected in ((3, 3), (None, 7)):
        params = context_params(replace(TEXT, threads=threads))
        assert (params.n_threads, params.n_threads_batch) == (expected, expected)
    decoder = build(TEXT)
    assert llama_cpp.llama_n_threads(decoder._context) == 1


def test_batches_are_those_of_llama_bench() -> None:
    params = context_params(TEXT)
    assert (params.n_batch, params.n_ubatch, params.n_ctx) == (2048, 512, 40)
    assert params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO


def test_the_cache_has_the_precision_of_the_case() -> None:
    deep = replace(TEXT, depth=200)
    cases = {"f32": replace(deep, weights="f32"), "f16": deep, "q8_0": replace(deep, kv="q8_0")}
    decoders = {kind: build(case) for kind, case in cases.items()}
    sizes = {kind: llama_cpp.llama_state_seq_get_size(one._context, 0) for kind, one in decoders.items()}
    assert sizes["f32"] / sizes["f16"] == pytest.approx(2, rel=0.01)
    assert sizes["q8_0"] / sizes["f16"] == pytest.approx(34 / 64, rel=0.02)


def test_a_full_context_and_a_token_of_no_vocabulary_are_errors() -> None:
    decoder = build(TEXT)
    with pytest.raises(RuntimeError, match="the context is full"):
        decoder(np.zeros(230, np.int32))  # 31 lie before, and 40 are rounded up to 256
    with pytest.raises(RuntimeError, match=r"invalid token\[0\] = 512"):
        decoder(np.array([512], np.int32))
    np.testing.assert_array_equal(answer(TEXT, decoder), answer(TEXT))


def test_a_file_it_cannot_read_is_a_reason_without_the_path(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"nothing of the kind" * 10)
    with pytest.raises(Unavailable, match=r"llama.cpp does not load model\.gguf: .*magic") as refused:
        LlamaDecoder(file, TEXT)
    assert str(tmp_path) not in str(refused.value)


def test_a_cache_it_cannot_make_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contender.CACHE_TYPES, "q8_0", llama_cpp.GGML_TYPE_Q8_K)  # no kernel copies into it
    freed = []
    free = llama_cpp.llama_model_free
    monkeypatch.setattr(llama_cpp, "llama_model_free", lambda model: (freed.append(model), free(model)))
    with pytest.raises(Unavailable, match=r"makes no context of .* with a q8_0 cache"):
        build(replace(TEXT, kv="q8_0"))
    assert len(freed) == 1


def test_model_and_context_are_freed_with_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    for name in ("llama_free", "llama_model_free"):
        free = getattr(llama_cpp, name)
        monkeypatch.setattr(llama_cpp, name, lambda pointer, name=name, free=free: (order.append(name), free(pointer)))
    decoder = build(TEXT)
    answer(TEXT, decoder)
    assert order == []
    del decoder
    gc.collect()
    assert order == ["llama_free", "llama_model_free"]


def test_the_library_keeps_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    answer(TEXT)
    assert capfd.readouterr() == ("", "")
