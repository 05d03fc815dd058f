"""Model files are made whole from every source, say what they are, and are refused when they are not what was made."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archbench.models.edge_llm import MODELS, EdgeCase
from archbench.models.edge_llm import _artefacts as artefacts
from archbench.models.edge_llm import _artefacts_writing as writing
from archbench.models.edge_llm._config import LlamaConfig
from archbench.models.edge_llm._weights import Weights, open_weights
from archbench.models.edge_llm._weights_gguf import Gguf
from archbench.track import Unavailable

pytest.importorskip("gguf", reason="model files are written with the package gguf")

TINY = EdgeCase("tiny_random", "pp", 1)
SMALL = LlamaConfig(vocabulary=40, dim=64, layers=2, heads=4, kv_heads=2, head_dim=16, hidden=96, context=32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artefact folder of its own."""
    monkeypatch.setenv("ARCHBENCH_EDGE", str(tmp_path / "edge"))
    monkeypatch.delenv("ARCHBENCH_DATA", raising=False)
    return tmp_path / "edge"


def small(monkeypatch: pytest.MonkeyPatch, model: str, config: LlamaConfig = SMALL) -> None:
    monkeypatch.setitem(MODELS, model, replace(MODELS[model], config=config))


def test_the_folder_is_asked_for_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHBENCH_EDGE", "/somewhere")
    assert artefacts.path("tiny_random", "q4_0") == Path("/somewhere/tiny_random-q4_0.gguf")
    monkeypatch.delenv("ARCHBENCH_EDGE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert artefacts.folder() == Path("/cache/archbench/edge")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert artefacts.folder() == Path.home() / ".cache" / "archbench" / "edge"


def test_the_tiny_model_is_made_where_it_is_asked_for_and_is_the_same_each_time(folder: Path) -> None:
    assert artefacts.missing("tiny_random", "q4_0") is None
    first = artefacts.path("tiny_random", "q4_0").read_bytes()
    artefacts.path("tiny_random", "q4_0").unlink()
    assert artefacts.ready(TINY).read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "tiny_random-q4_0.gguf"]


def test_a_tiny_model_that_is_damaged_is_made_anew(folder: Path) -> None:
    where = artefacts.ready(TINY)
    whole = where.read_bytes()
    where.write_bytes(whole[: len(whole) // 2])
    assert artefacts.ready(TINY).read_bytes() == whole


def test_many_who_ask_at_once_find_one_file(folder: Path) -> None:
    found: list[bytes] = []
    askers = [threading.Thread(target=lambda: found.append(artefacts.ready(TINY).read_bytes())) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_missing_model_says_how_it_is_made(folder: Path) -> None:
    assert artefacts.missing("smollm2_135m", "q4_0") == (
        "no weights of smollm2_135m in q4_0: run `archbench edge build smollm2_135m`"
    )
    assert artefacts.missing("smollm2_135m", "f32") == (
        "no weights of smollm2_135m in f32: run `archbench edge build smollm2_135m --weights f32`"
    )
    assert artefacts.missing("stories260k", "q4_0") == (
        "stories260k has matrices of 172 columns, no multiple of the 32 weights of a block of q4_0"
    )
    assert "no multiple" in str(artefacts.missing("stories260k", "q4_k_m"))
    assert artefacts.data(EdgeCase("smollm2_135m", "pp", 1)) is None
    with pytest.raises(Unavailable, match="run `archbench edge build smollm2_135m`"):
        artefacts.ready(EdgeCase("smollm2_135m", "pp", 1))


@pytest.mark.parametrize("model", ["stories260k", "tiny_random"])
def test_a_package_that_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    def gone(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'gguf'", name="gguf")

    monkeypatch.setattr(writing, "write", gone)
    if model == "tiny_random":
        assert artefacts.missing(model, "f32") == "needs the package gguf"
    else:
        with pytest.raises(ImportError, match="gguf"):
            artefacts.build(model, ["f32"])


@pytest.mark.parametrize("damage", ["cut", "cut by one", "a bit", "longer", "end"])
def test_a_file_that_is_not_what_was_written_is_refused(folder: Path, damage: str) -> None:
    where = folder / "tinyllama_1b1-q4_0.gguf"
    content = bytearray(artefacts.ready(TINY).read_bytes())
    where.write_bytes(content)
    artefacts.verify(where)
    if damage == "a bit":
        content[len(content) // 2] ^= 1
    elif damage == "end":
        content[-1] ^= 1
    else:
        content = {"cut": content[:5000], "cut by one": content[:-1], "longer": content + b"\0"}[damage]
    where.write_bytes(content)
    os.utime(where, ns=(1, 1))  # another time, as any later change has
    with pytest.raises(Unavailable, match="run `archbench edge build tinyllama_1b1 --weights q4_0`"):
        Weights(where)
    assert not artefacts.is_whole(where)


def test_a_build_leaves_whole_files_alone_and_replaces_damaged_ones(folder: Path) -> None:
    (where,) = artefacts.build("tiny_random", ["f16"])
    before = where.stat().st_mtime_ns
    artefacts.build("tiny_random", ["f16"])
    assert where.stat().st_mtime_ns == before
    where.write_bytes(where.read_bytes()[:-1])
    artefacts.build("tiny_random", ["f16"])
    artefacts.verify(where)


def test_a_writer_that_fails_or_was_killed_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / ".tiny_random-q4_0.gguf.new").write_bytes(b"of a writer that was killed")

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artefacts, "seal", full)
        assert "No space left" in str(artefacts.missing("tiny_random", "q4_0"))
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_file_says_what_it_is(folder: Path) -> None:
    found = Gguf(artefacts.ready(TINY))
    assert found.metadata["general.name"] == "tiny_random"
    assert found.metadata["general.description"] == "random weights, for tests"
    assert found.metadata["archbench.random"] is True
    assert found.metadata["tokenizer.ggml.model"] == "none"
    assert found.metadata["llama.vocab_size"] == 512
    data = artefacts.data(TINY)
    assert data is not None
    assert (data.name, data.origin) == ("tiny_random", "random weights, for tests; weights in q4_0")
    content = artefacts.path("tiny_random", "q4_0").read_bytes()
    assert data.fingerprint == hashlib.blake2b(content[: -32 - len(artefacts.SEAL)], digest_size=32).hexdigest()


@pytest.mark.parametrize("model", [name for name, model in MODELS.items() if model.random])
def test_who_measures_random_weights_says_so(model: str) -> None:
    assert "random weights" in MODELS[model].origin


def test_random_weights_keep_activations_of_size_one_in_any_depth(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from archbench.models.edge_llm import _reference as reference

    small(monkeypatch, "tiny_random", replace(SMALL, layers=30))
    weights = open_weights(replace(TINY, weights="f32"))
    hidden, _ = reference.evaluate(weights, np.arange(20, dtype=np.int32), ())
    logits = reference.vocabulary(weights, hidden)
    assert 0.5 < logits.std(axis=1).min() < logits.std(axis=1).max() < 2
