"""Model files are read as they were written, and what is no whole model file is refused with a reason."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from archbench.models.edge_llm import MODELS, EdgeCase
from archbench.models.edge_llm import _artefacts as artefacts
from archbench.models.edge_llm._weights import open_weights
from archbench.models.edge_llm._weights_blocks import KINDS, floats, quantised
from archbench.models.edge_llm._weights_gguf import BadGguf, Gguf
from archbench.track import Unavailable

gguf = pytest.importorskip("gguf", reason="model files are written with the package gguf")

SAMPLE = np.random.default_rng(0).standard_normal((7, 512), np.float32)
SAMPLE[2, 32:64] = 0  # a block of zeros has the scale zero
SAMPLE[3, :32] = 0.5  # the largest weight is not the only one of its size
SAMPLE[4] *= 1e-4


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0"])
def test_blocks_are_those_of_the_gguf_package(kind: str) -> None:
    number = gguf.GGMLQuantizationType(KINDS[kind].number)
    blocks = quantised(kind, SAMPLE)
    theirs = gguf.quants.quantize(SAMPLE, number)
    assert blocks.shape == (7, 512 // KINDS[kind].block * KINDS[kind].bytes)
    assert np.array_equal(blocks, theirs.view(np.uint8).reshape(blocks.shape))
    assert np.array_equal(floats(kind, blocks), gguf.quants.dequantize(theirs, number))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("f32", "f16")])
def test_every_kind_has_the_block_ggml_gives_it(kind: str) -> None:
    number = gguf.GGMLQuantizationType(KINDS[kind].number)
    assert (number.name.lower(), *gguf.GGML_QUANT_SIZES[number]) == (kind, KINDS[kind].block, KINDS[kind].bytes)


def test_many_blocks_are_read_in_slices() -> None:
    weights = np.random.default_rng(1).standard_normal((700, 160), np.float32)  # 3,500 blocks: two slices
    blocks = quantised("q4_0", weights)
    assert np.array_equal(floats("q4_0", blocks)[-1:], floats("q4_0", blocks[-1:]))
    error, largest = (np.abs(x.reshape(-1, 32)).max(axis=1) for x in (floats("q4_0", blocks) - weights, weights))
    assert (error <= 1.01 * largest / 8).all()  # a whole step where the scale's sign leaves no 8


def test_a_file_holds_the_config_the_kinds_and_the_values() -> None:
    weights = open_weights(EdgeCase("tiny_random", "pp", 1))
    assert weights.config == MODELS["tiny_random"].config
    assert len(weights.names) == 3 + 9 * 3
    assert {weights.kind(name) for name in weights.matrices()} == {"q4_0"}
    assert weights.kind("token_embd.weight") == "q4_0"
    assert weights.kind("blk.0.attn_norm.weight") == "f32"
    assert weights.raw("blk.1.ffn_down.weight").shape == (256, 512 // 32 * 18)
    assert weights.shape("blk.1.ffn_down.weight") == (256, 512)
    down = weights.floats("blk.1.ffn_down.weight")
    assert down.shape == (256, 512)
    assert down.dtype == np.float32
    picked = np.array([5, 5, 200])
    assert np.array_equal(weights.floats("blk.1.ffn_down.weight", picked), down[picked])
    assert weights.floats("output_norm.weight").shape == (256,)
    assert weights.output == "output.weight"
    assert len(list(weights.matrices())) == 3 * 7 + 1


def test_the_gguf_package_reads_the_same() -> None:
    where = artefacts.ready(EdgeCase("tiny_random", "pp", 1, weights="q8_0"))
    reader, mine = gguf.GGUFReader(where), Gguf(where)
    assert [tensor.name for tensor in reader.tensors] == list(mine.tensors)
    for tensor in reader.tensors:
        assert np.array_equal(tensor.data.reshape(-1).view(np.uint8), mine.raw(tensor.name).reshape(-1))
    told = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert told == mine.metadata


def test_weights_in_all_kinds_are_near_the_float32_ones() -> None:
    exact = open_weights(EdgeCase("tiny_random", "pp", 1, weights="f32")).floats("blk.2.ffn_up.weight")
    # Half a step of the format, as a share of the largest of 32 normal weights (2.1 deviations).
    for kind, largest in (("f16", 3e-4), ("q8_0", 6e-3), ("q4_0", 0.1)):
        found = open_weights(EdgeCase("tiny_random", "pp", 1, weights=kind)).floats("blk.2.ffn_up.weight")
        assert 0 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < largest


def test_a_process_opens_a_file_once() -> None:
    case = EdgeCase("tiny_random", "pp", 1)
    assert open_weights(case) is open_weights(artefacts.path("tiny_random", "q4_0"))


def test_what_is_no_model_file_is_refused(tmp_path: Path) -> None:
    whole = artefacts.ready(EdgeCase("tiny_random", "pp", 1)).read_bytes()
    other = b"GGUF" + struct.pack("<IQQ", 2, 0, 0)
    for number, (content, message) in enumerate(
        (
            (b"", "is no GGUF file, or a part of one"),
            (b"GGUF", "is no GGUF file, or a part of one"),
            (b"ONNX" + whole[4:], "begins with b'ONNX' version 3, expected b'GGUF' version 3"),
            (other, "begins with b'GGUF' version 2"),
            (whole[:1000], "is no GGUF file, or a part of one"),
            (
                whole[:100_000],
                r"ends before blk\.0\.\w+\.weight: a part of the file is missing",
            ),
            (whole[:8] + b"\xff" * 8 + whole[16:], "is no GGUF file, or a part of one"),
        )
    ):
        path = tmp_path / str(number)
        path.write_bytes(content)
        with pytest.raises(BadGguf, match=message):
            Gguf(path)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    whole = artefacts.ready(EdgeCase("tiny_random", "pp", 1)).read_bytes()
    path = tmp_path / "other.gguf"
    path.write_bytes(whole.replace(b"llama", b"bloom"))
    with pytest.raises(BadGguf, match="of architecture 'bloom', not llama"):
        _ = Gguf(path).config
    path.write_bytes(whole.replace(b"llama.block_count", b"llama.block_cound"))
    with pytest.raises(BadGguf, match=r"does not say 'llama\.block_count'"):
        _ = Gguf(path).config


def test_a_file_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        open_weights(tmp_path / "none.gguf")
    with pytest.raises(Unavailable, match="run `archbench edge build tinyllama_1b1`"):
        open_weights(EdgeCase("tinyllama_1b1", "pp", 1))
