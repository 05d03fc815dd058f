"""Perplexity of real text, runtime against runtime: what a row's speed was paid with, in the reader's unit.

The gate compares logits after random tokens. Here a text is read in windows; in each, every token is predicted from the
ones before it in the window, and the mean of -log p (nats per token) is what the runtimes are compared by. At equal
weights they may differ by what rounding of activations does, which is far below 1 %.

    python -m archbench.models.edge_llm._perplexity smollm2_135m q4_0 --text FILE

Letters: N tokens of a text, V vocabulary.

Source: Jelinek et al. 1977, Perplexity, a measure of the difficulty of speech recognition tasks; tokenisers:
https://github.com/karpathy/llama2.c/blob/master/tokenizer.py and llama.cpp's own
"""

from __future__ import annotations

import argparse
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from archbench.discovery import contender_modules, load_contender
from archbench.models.edge_llm import Decoder, EdgeCase
from archbench.models.edge_llm._artefacts import ready
from archbench.track import Unavailable

Ids = npt.NDArray[np.int32]

BEGIN = 1  # llama2.c's token before a text
BYTES = 3  # its token of the byte 0
WORDS = b" "


def nats_per_token(decoder: Decoder, ids: Ids, window: int) -> float:
    """Mean of -log p over the tokens (N) of whole windows, each window's first left out: it is only a condition."""
    lost = []
    for start in range(0, len(ids) - window + 1, window):
        decoder.rewind()
        for here in range(start, start + window - 1):
            logits_V = np.asarray(decoder(ids[here : here + 1]), np.float64)
            top = logits_V.max()
            lost.append(top + math.log(np.exp(logits_V - top).sum()) - logits_V[ids[here + 1]])
    return float(np.mean(lost))


class Tokenizer2C:
    """llama2.c's tokeniser: a file of texts with scores; pairs are joined while one has a score."""

    def __init__(self, where: Path) -> None:
        content, at = where.read_bytes(), 4  # the length of the longest text is not needed
        self.texts: list[bytes] = []
        self.scores: list[float] = []
        while at < len(content):
            score, length = struct.unpack_from("<fi", content, at)
            self.texts.append(content[at + 8 : at + 8 + length])
            self.scores.append(score)
            at += 8 + length
        self._ids = {text: number for number, text in enumerate(self.texts)}

    def encode(self, text: str) -> Ids:
        """A space is put before the text, and the token of the beginning before that."""
        ids: list[int] = []
        for letter in WORDS.decode() + text:
            code = letter.encode()
            ids += [self._ids[code]] if code in self._ids else [byte + BYTES for byte in code]
        while (best := self._best_pair(ids)) is not None:
            place, joined = best
            ids[place : place + 2] = [joined]
        return np.array([BEGIN, *ids], np.int32)

    def _best_pair(self, ids: list[int]) -> tuple[int, int] | None:
        """Where the pair with the highest score is, and what it becomes."""
        found = None
        for place in range(len(ids) - 1):
            joined = self._ids.get(self.texts[ids[place]] + self.texts[ids[place + 1]])
            if joined is not None and (found is None or self.scores[joined] > self.scores[found[1]]):
                found = (place, joined)
        return found


def encode_with_llama_cpp(file: Path, text: str) -> Ids:
    """The tokens of a text by the tokeniser a model file carries."""
    import ctypes

    import llama_cpp

    from archbench.models.edge_llm._artefacts_log import only_errors

    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    content = text.encode()
    room = (llama_cpp.llama_token * (len(content) + 8))()
    with only_errors():
        model = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
        if not model:
            raise Unavailable(f"llama.cpp does not load the vocabulary of {file.name}")
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        count = llama_cpp.llama_tokenize(vocabulary, content, len(content), room, len(room), False, False)
        llama_cpp.llama_model_free(model)
    return np.ctypeslib.as_array(ctypes.cast(room, ctypes.POINTER(ctypes.c_int32)), (count,)).copy()


def compare(case: EdgeCase, ids: Ids, contenders: Sequence[str]) -> dict[str, float | str]:
    """Nats per token of each contender, or why it gives none. The case is generation; its tokens are the window."""
    found: dict[str, float | str] = {}
    for name in contenders:
        loaded = load_contender("edge_llm", name)
        if loaded.entry is None:
            found[name] = loaded.reason
            continue
        try:
            decoder: Any = loaded.entry.build(case)
        except Unavailable as reason:
            found[name] = str(reason)
            continue
        found[name] = nats_per_token(decoder, ids, case.tokens)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Perplexity of a text, contender by contender.")
    parser.add_argument("model")
    parser.add_argument("weights")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="tok512.bin, for a model of llama2.c")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--contender", action="append", help="may be repeated; all when left out")
    given = parser.parse_args()
    case = EdgeCase(given.model, "tg", given.window, weights=given.weights)
    count = given.window * given.windows
    text = given.text.read_text(encoding="utf-8")[: 8 * count]  # letters: more than the tokens that are read
    ids = Tokenizer2C(given.tokenizer).encode(text) if given.tokenizer else encode_with_llama_cpp(ready(case), text)
    found = compare(case, ids[:count], given.contender or list(contender_modules("edge_llm")))
    numbers = [value for value in found.values() if not isinstance(value, str)]
    print(f"{case.slug}: {len(ids[:count])} tokens in windows of {given.window}")
    for name, value in found.items():
        said = value if isinstance(value, str) else f"{value:.5f} nats a token, perplexity {math.exp(value):.4f}"
        print(f"{name:22} {said}" + ("" if isinstance(value, str) else f", {math.exp(value - numbers[0]) - 1:+.3%}"))


if __name__ == "__main__":
    main()
