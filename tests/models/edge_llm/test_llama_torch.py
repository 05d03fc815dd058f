"""The Llama in PyTorch gives the reference's answers, eager and compiled, and as the ONNX graph it exports."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from archbench.models.edge_llm import EdgeCase, make_inputs, prefix, workload
from archbench.models.edge_llm import _reference as reference
from archbench.models.edge_llm._gate import gate
from archbench.models.edge_llm._weights import open_weights
from archbench.track import Unavailable

torch = pytest.importorskip("torch", reason="this is the model in PyTorch")
pytest.importorskip("gguf", reason="model files are written with the package gguf")
llama = pytest.importorskip("archbench.models.edge_llm._llama_torch", reason="this is the model in PyTorch")

GENERATE = EdgeCase("tiny_random", "tg", 7, 20)


@pytest.mark.parametrize("weights", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize(("phase", "depth"), [("pp", 0), ("pp", 20), ("tg", 0), ("tg", 20)])
def test_eager_agrees_within_rounding_of_float32(weights: str, phase: str, depth: int) -> None:
    case = replace(GENERATE, phase=phase, depth=depth, weights=weights)
    call = workload(case, llama.Decoder(case))
    for seed in range(2):  # the second pass begins with a rewind
        inputs = make_inputs(case, seed, "cpu")
        assert gate(case, inputs, call(*inputs)) < 1e-5


def test_a_long_prefix_is_evaluated_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(GENERATE, depth=150)
    monkeypatch.setattr(llama, "PIECE", 64)
    inputs = make_inputs(case, 0, "cpu")
    assert gate(case, inputs, workload(case, llama.Decoder(case))(*inputs)) < 1e-5


def test_a_tied_output_is_the_embedding() -> None:
    weights = open_weights(GENERATE)

    class Tied:
        config = replace(weights.config, tied=True)
        names = tuple(name for name in weights.names if name != "output.weight")
        floats = staticmethod(weights.floats)

    model = llama.load(Tied(), 8)
    assert model.output.weight is model.token_embd.weight or (
        model.output.weight.data_ptr() == model.token_embd.weight.data_ptr()
    )


@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor compiles with g++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch's compiler, not ours
@pytest.mark.parametrize("phase", ["pp", "tg"])
def test_compiled_agrees_within_rounding_of_float32(phase: str) -> None:
    from archbench.models.edge_llm import torch_compiled

    case = replace(GENERATE, phase=phase)
    call = workload(case, torch_compiled.build(case))
    for seed in range(2):
        inputs = make_inputs(case, seed, "cpu")
        assert gate(case, inputs, call(*inputs)) < 1e-5


def test_threads_are_the_cases_and_torchs_setting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    decoder = llama.Decoder(replace(GENERATE, threads=1))
    seen: list[int] = []
    monkeypatch.setattr(decoder, "_timed", lambda ids, places: seen.append(torch.get_num_threads()) or torch.zeros(3))
    decoder(np.zeros(1, np.int32))
    assert seen == [1]
    assert torch.get_num_threads() == before


def test_what_it_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from archbench.models.edge_llm import torch_compiled, torch_eager

    for contender in (torch_eager, torch_compiled):
        with pytest.raises(Unavailable, match="its cache is float32, not q8_0"):
            contender.build(replace(GENERATE, kv="q8_0"))
    memory = namedtuple("memory", "available")
    monkeypatch.setattr(llama.psutil, "virtual_memory", lambda: memory(1_000_000))
    with pytest.raises(Unavailable, match=r"the weights in float32 take 0\.0 GB; 0\.0 GB are free"):
        torch_eager.build(GENERATE)


def test_a_compiler_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from archbench.models.edge_llm import torch_compiled

    def fails(*_: object) -> None:
        raise torch_compiled.TorchDynamoException("backend='inductor' raised:\nno C++ compiler\nand more")

    monkeypatch.setattr(llama.Decoder, "whole_step", fails)
    with pytest.raises(Unavailable, match=r"torch\.compile fails here: .* raised: no C\+\+ compiler$"):
        torch_compiled.build(GENERATE)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")  # torch's own call
def test_the_exported_graph_gives_the_same_answers(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch exports ONNX graphs with onnxscript")
    ort = pytest.importorskip("onnxruntime", reason="the graph is run by ONNX Runtime")
    case = EdgeCase("tiny_random", "pp", 9, 20, weights="f32")
    llama.export(open_weights(case), tmp_path / "step.onnx", positions=64)
    session = ort.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    assert names == ["ids", *(f"{part}_{layer}" for layer in range(3) for part in ("keys", "values"))]
    outputs = [found.name for found in session.get_outputs()]
    assert outputs == ["logits", *(f"new_{name}" for name in names[1:])]

    def step(tokens: np.ndarray, past: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        logits, *new = session.run(None, dict(zip(names, [tokens.astype(np.int64), *past], strict=True)))
        return logits, new

    _, past = step(prefix(case), [np.zeros((2, 0, 64), np.float32)] * 6)
    (tokens,) = make_inputs(case, 0, "cpu")
    together, _ = step(tokens, past)
    for token in tokens:
        alone, past = step(np.array([token]), past)
    want = reference.logits(case, tokens)[0]
    for got in (together, alone):
        assert np.linalg.norm(got - want) < 1e-4 * np.linalg.norm(want)
