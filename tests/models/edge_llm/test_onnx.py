"""The ONNX graphs: weights are the GGUF file's, nodes are the ones meant, and a cache changes no token."""

# ruff: noqa: E402 - the skip comes before what needs the packages
from __future__ import annotations

import ctypes
import mmap
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the package onnx: pip install archbench[peers]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime: pip install archbench[peers]")

from onnx import TensorProto, helper

from archbench.discovery import load_contender
from archbench.models.edge_llm import TRACK, EdgeCase, Logits, Tokens, make_inputs, prefix, workload
from archbench.models.edge_llm import _artefacts as artefacts
from archbench.models.edge_llm._onnx_data import data_file, layout, regroup
from archbench.models.edge_llm._onnx_graph import INT8, MICROSOFT, fused
from archbench.models.edge_llm._onnx_pages import in_huge_pages
from archbench.models.edge_llm._onnx_plain import plain
from archbench.models.edge_llm._onnx_session import cache_scales, fused_for, opened
from archbench.models.edge_llm._weights import Weights, open_weights
from archbench.models.edge_llm._weights_blocks import floats, quantised
from archbench.track import Unavailable

CONTENDERS = ("ort_fused", "ort_plain", "ort_copied_cache", "ort_no_cache", "ort_fp32_activations", "ort_huge_pages")
EXACT = EdgeCase("tiny_random", "tg", 7, 21, weights="f32", threads=1)
SMALL = replace(EXACT, weights="q4_0")


def tokens(case: EdgeCase, seed: int = 3) -> Tokens:
    return make_inputs(case, seed, "cpu")[0]


def decoder(name: str, case: EdgeCase) -> Any:
    found = load_contender(TRACK.name, name)
    assert found.entry is not None, found.reason
    return found.entry.build(case)


def answer(name: str, case: EdgeCase) -> Logits:
    logits: Logits = workload(case, decoder(name, case))(tokens(case))
    return logits


def unpacked(values: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """What MatMulNBits takes a matrix (N, blocks, bytes) for: low bits first, half of the range subtracted."""
    parts = [values >> shift & (2**bits - 1) for shift in range(0, 8, bits)]
    elements = np.stack(parts, axis=-1).reshape(*scales.shape, -1).astype(np.int32) - 2 ** (bits - 1)
    return (elements * scales[..., None]).reshape(len(values), -1).astype(np.float32)


@pytest.mark.parametrize(("kind", "bits"), [("q4_0", 4), ("q8_0", 8)])
def test_regrouped_blocks_hold_the_same_numbers(kind: str, bits: int) -> None:
    blocks = quantised(kind, np.random.default_rng(0).standard_normal((5, 96), np.float32))
    np.testing.assert_array_equal(unpacked(*regroup(blocks, kind), bits), floats(kind, blocks))


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_onnx_runtime_multiplies_with_those_numbers(kind: str) -> None:
    """The identity times the matrix is the matrix, to the last bit."""
    name = "blk.1.ffn_gate.weight"
    weights = open_weights(replace(EXACT, weights=kind))
    values, scales = regroup(weights.raw(name), kind)
    rows, columns = weights.shape(name)
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain=MICROSOFT,
        N=rows, K=columns, bits={"q4_0": 4, "q8_0": 8}[kind], block_size=32, accuracy_level=1,
    )  # fmt: skip
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, (columns, size))
        for end, size in zip("xy", (columns, rows), strict=True)
    ]
    tensors = [onnx.numpy_helper.from_array(array, key) for key, array in (("b", values), ("s", scales))]
    model = helper.make_model(
        helper.make_graph([node], "product", ends[:1], ends[1:], tensors),
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)], ir_version=11,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": np.eye(columns, dtype=np.float32)})
    np.testing.assert_array_equal(got.T, weights.floats(name))


def graphs(weights: Weights) -> dict[str, Any]:
    pieces, _ = layout(weights)
    return {graph.__name__: graph(weights, pieces, "weights.onnx_data", 16) for graph in (fused, plain)}


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0"])
def test_graphs_pass_the_checker(kind: str, tmp_path: Path) -> None:
    weights = open_weights(replace(EXACT, weights=kind))
    shutil.copy(data_file(weights, *layout(weights)), tmp_path / "weights.onnx_data")
    for name, model in graphs(weights).items():
        assert (model.ir_version, [entry.version for entry in model.opset_import]) == (11, [23, 1])
        onnx.save(model, str(tmp_path / f"{name}.onnx"))
        onnx.checker.check_model(str(tmp_path / f"{name}.onnx"), full_check=True)


def test_the_fused_graph_has_fused_nodes_and_the_plain_one_none() -> None:
    models = graphs(open_weights(SMALL))
    layers = SMALL.config.layers
    ours = Counter(node.op_type for node in models["fused"].graph.node)
    assert ours["GroupQueryAttention"] == layers
    assert ours["SkipSimplifiedLayerNormalization"] == 2 * layers
    assert ours["MatMulNBits"] == 5 * layers + 1  # queries, keys and values are one product
    microsoft = {node.op_type for node in models["plain"].graph.node if node.domain == MICROSOFT}
    assert microsoft == {"MatMulNBits", "GatherBlockQuantized"}


def test_the_plain_graph_stays_plain_when_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "optimised.onnx"
    options = onnxruntime.SessionOptions

    def writing() -> Any:
        made = options()
        made.optimized_model_filepath = str(written)
        return made

    monkeypatch.setattr(onnxruntime, "SessionOptions", writing)
    opened(SMALL, plain, fusion=False)
    kinds = Counter(node.op_type for node in onnx.load(str(written), load_external_data=False).graph.node)
    assert kinds["Softmax"] == kinds["Sqrt"] - SMALL.config.layers - 1 == SMALL.config.layers
    assert kinds["SimplifiedLayerNormalization"] == kinds["QuickGelu"] == 0


@pytest.mark.parametrize("name", ["ort_plain", "ort_copied_cache", "ort_no_cache", "ort_huge_pages"])
def test_whatever_the_cache_the_tokens_are_the_same(name: str) -> None:
    want = answer("ort_fused", EXACT)
    np.testing.assert_allclose(answer(name, EXACT), want, rtol=0, atol=2e-6 * float(np.abs(want).max()) * 10)


def test_a_prompt_is_the_same_as_its_tokens_one_by_one() -> None:
    prompt = replace(EXACT, phase="pp")
    want = answer("ort_fused", EXACT)[-1]
    np.testing.assert_allclose(answer("ort_fused", prompt)[0], want, rtol=0, atol=2e-5 * float(np.abs(want).max()))


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize(
    "case", [SMALL, replace(SMALL, depth=0), replace(SMALL, phase="pp")], ids=lambda case: case.slug
)
def test_after_rewinding_it_answers_as_a_fresh_one(name: str, case: EdgeCase) -> None:
    used = decoder(name, case)
    workload(case, used)(tokens(case, seed=8))  # other tokens lie where these will
    np.testing.assert_array_equal(workload(case, used)(tokens(case)), answer(name, case))


def test_a_decoder_keeps_the_memory_it_has_bound() -> None:
    """A binding holds addresses, not arrays: with theirs gone, others would be written over."""
    used = decoder("ort_fused", EXACT)
    want = workload(EXACT, used)(tokens(EXACT))
    others = [np.full((1, 2, 28, 64), np.nan, np.float32) for _ in range(200)]
    np.testing.assert_array_equal(workload(EXACT, used)(tokens(EXACT)), want)
    assert all(np.isnan(other).all() for other in others)


def test_fp32_activations_are_nearer_to_the_weights() -> None:
    inputs = (tokens(SMALL),)
    errors = {name: TRACK.gate(SMALL, inputs, answer(name, SMALL)) for name in ("ort_fused", "ort_fp32_activations")}
    assert errors["ort_fp32_activations"] < 1e-4 < errors["ort_fused"]


def test_a_session_has_the_threads_of_its_case() -> None:
    options = opened(replace(SMALL, threads=3), fused).get_session_options()
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(artefacts.FOLDER, str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("own_folder")
def test_the_data_file_is_written_once_for_all_graphs() -> None:
    answer("ort_fused", SMALL)
    data = artefacts.path("tiny_random", "q4_0").with_suffix(".onnx_data")
    first = data.stat()
    for name in CONTENDERS:
        answer(name, SMALL)
    assert (data.stat().st_ino, data.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert {file.name for file in data.parent.iterdir()} == {".lock", data.name, "tiny_random-q4_0.gguf"}


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize("harm", ["cut", "of another file"])
def test_a_data_file_that_is_not_of_these_weights_is_written_again(harm: str) -> None:
    want = answer("ort_fused", SMALL)
    data = artefacts.path("tiny_random", "q4_0").with_suffix(".onnx_data")
    whole = data.read_bytes()
    data.write_bytes(whole[:-99] if harm == "cut" else bytes(len(whole) - 9) + bytes(9))
    np.testing.assert_array_equal(answer("ort_fused", SMALL), want)
    assert data.read_bytes() == whole


def test_an_int8_cache_is_int8_and_has_scales_that_fit() -> None:
    case = replace(EXACT, kv="q8_0")
    coarse, exact = decoder("ort_fused", case), decoder("ort_fused", EXACT)
    for used, of in ((coarse, case), (exact, EXACT)):
        workload(of, used)(tokens(of))
    scales = cache_scales(case, INT8)
    assert len(scales) == case.config.layers
    for got, want, scale in zip(coarse.cache(0), exact.cache(0), scales[0], strict=True):  # later layers inherit errors
        assert got.dtype == np.int8
        assert got.shape == want.shape == (1, 2, 28, 64)
        error = np.linalg.norm(got * scale - want) / np.linalg.norm(want)
        assert (
            0.005 < error < 0.015
        )  # a step of 1.25 maxima of 2.9 deviations / 127, over sqrt(12): 0.8 %, little cut off
    assert 1e-3 < TRACK.gate(case, (tokens(case),), workload(case, coarse)(tokens(case))) < 0.05


@pytest.mark.parametrize("name", ["ort_plain", "ort_copied_cache", "ort_no_cache"])
def test_an_ablation_of_the_cache_keeps_it_in_floats(name: str) -> None:
    with pytest.raises(Unavailable, match="with the cache in fp32: no q8_0"):
        decoder(name, replace(SMALL, kv="q8_0"))


def test_mixed_kinds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = open_weights(SMALL)
    monkeypatch.setattr(type(weights), "kind", lambda self, name: "q6_k" if "ffn_down" in name else "q4_k")
    with pytest.raises(Unavailable, match="no matrix product for q4_k weights"):
        layout(weights)
    monkeypatch.setattr(type(weights), "kind", lambda self, name: "q8_0" if "attn_v" in name else "q4_0")
    with pytest.raises(Unavailable, match=r"attn_v\.weight are of different kinds: q4_0, q8_0"):
        layout(weights)


def test_reading_a_long_text_for_every_token_is_refused() -> None:
    with pytest.raises(Unavailable, match="reads 66064 tokens for 32"):
        decoder("ort_no_cache", EdgeCase("smollm2_135m", "tg", 32, 2048))
    assert len(prefix(EXACT)) == 21  # a short one is read


def flags(block: mmap.mmap) -> str:
    """The kernel's flags of the memory a block lies in."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(block))
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(each, 16) for each in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return line
    raise AssertionError("the block is in no range")


def test_only_memory_of_the_block_is_moved_into_huge_pages() -> None:
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    before = mmap.mmap(-1, 8 << 20, flags=private)
    before.write(bytes(8 << 20))
    try:
        with in_huge_pages():
            after = mmap.mmap(-1, 8 << 20, flags=private)
            after.write(b"kept" * (2 << 20))
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert after[:] == b"kept" * (2 << 20)
    assert " hg" in flags(after)
    assert " hg" not in flags(before)


def test_heads_the_fused_operator_cannot_turn_are_refused_before_anything_is_opened() -> None:
    case = EdgeCase("stories260k", "tg", 4, weights="f32")
    with pytest.raises(Unavailable, match="heads of a multiple of 16 values, not of 8"):
        fused_for(case)
